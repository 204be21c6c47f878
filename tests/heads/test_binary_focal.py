import pytest
import torch
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from kanoclip.heads.binary_focal import binary_focal_loss

P = torch.tensor([0.1, 0.4, 0.8, 0.95])


@pytest.mark.parametrize("gamma", [0, 2, 4])
def test_it_is_cross_entropy_where_what_is_right_counts_less(gamma) -> None:
    target = torch.tensor([0.0, 1.0, 0.5, 1.0])
    entropy = binary_cross_entropy(P, target, reduction="none")
    right = torch.tensor([0.9, 0.4, 0.5, 0.95])
    torch.testing.assert_close(binary_focal_loss(P, target, gamma), ((1 - right) ** gamma * entropy).mean())
    logits = P.logit()
    plain = binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(binary_focal_loss(logits.sigmoid(), target, 0.0), plain)


def test_it_stays_finite_where_a_probability_is_wrong_for_sure() -> None:
    p = torch.tensor([0.0, 1.0, 1.0]).requires_grad_()
    loss = binary_focal_loss(p, torch.tensor([1.0, 0.0, 1.0]))
    loss.backward()
    assert loss.isfinite()
    assert p.grad.isfinite().all()
    assert float(binary_focal_loss(p[:0], p[:0])) == 0


def test_an_overwritten_target_changes_the_gradient_alone() -> None:
    target = torch.tensor([0.0, 1.0, 0.0, 1.0])
    found = {}
    for name, instead in (("none", None), ("same", target), ("other", target.clone().sub_((target == 0).float()))):
        p = P.clone().requires_grad_()
        loss = binary_focal_loss(p, target, 2.0, instead)
        loss.backward()
        found[name] = loss.detach(), p.grad
    torch.testing.assert_close(found["none"], found["same"])
    torch.testing.assert_close(found["none"][0], found["other"][0])
    torch.testing.assert_close(found["none"][1][target == 1], found["other"][1][target == 1])
    p = P[target == 0]  # of (1 - p_t)^2 H: H' = (1 + p) / (p (1 - p)), and p_t' = -2
    expected = p**2 * (1 + p) / (p * (1 - p)) - 2 * p * -2 * -(1 - p).log()
    torch.testing.assert_close(found["other"][1][target == 0], expected / 4)
