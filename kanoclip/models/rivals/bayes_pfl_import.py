"""Read the weights that the authors of Bayes-PFL publish."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from kanoclip.models.published import only_file, part_of, tensor_of
from kanoclip.types import KanoclipError

_PROMPTS = "kanoclip.heads.bayesian_prompts.BayesianPrompts"
_NO_ADAPTER = "kanoclip.heads.adapter.NoAdapter"


def from_published(files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn the one file of Bayes-PFL's own code into options and heads of ``BayesPFL``.

    Its decoders, ``p_mu`` and ``fuse.compress.bias``, which no score depends on, are left out. A file called
    ``epoch_post_..._1.pth`` is of the first stage: the adapter, which the second one fits, is then none.

    Args:
        files: Name -> content ``{"MyModel": {name: tensor}}``.

    Raises:
        KanoclipError: If there is another number of files, or a tensor is missing or has another shape.
    """
    name, content = only_file(files, "train_visa.pth")
    weights = part_of(content, "MyModel", name)

    def take(key: str, *shape: int | None) -> Tensor:
        return tensor_of(weights, key, shape, name)

    bank, context, width = take("prompt_context", None, None, None).shape
    state = take("prompt_state_normal", bank, None, width).shape[1]
    flows, dim = take("PFL_context.amor_b.weight", None, None).shape
    hidden = take("context_encoder.weight_mean.module.0.weight", None, dim).shape[0]
    levels = sum(re.fullmatch(r"RCA\.linear_proj\.\d+\.weight", key) is not None for key in weights)
    tower = take("RCA.linear_proj.0.weight", dim, None).shape[1]
    both = ("normal", "abnormal")

    def linear(ours: str, theirs: str, out: int, seen: int) -> Iterator[tuple[str, Tensor]]:
        yield f"{ours}.weight", take(f"{theirs}.weight", out, seen)
        yield f"{ours}.bias", take(f"{theirs}.bias", out)

    def encoder(ours: str, theirs: str, copies: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
        sizes = {0: (hidden, dim), 2: (hidden, hidden), 4: (width, hidden)}
        for mine, its in (("mean", "weight_mean"), ("log_variance", "weight_log_variance")):
            for number, size in sizes.items():
                yield from linear(f"{ours}.{mine}.{number}", f"{theirs}.{its}.module.{number}", *size)
                for copy in copies:  # one module under several names
                    key = f"{its}.module.{number}.weight"
                    if not torch.equal(take(f"{copy}.{key}", *size), take(f"{theirs}.{key}", *size)):
                        raise KanoclipError(f"{name}: '{copy}.{key}' differs from '{theirs}.{key}'.")

    heads = {
        "prompts.context_vectors": take("prompt_context", bank, context, width),
        "prompts.state_vectors": torch.stack([take(f"prompt_state_{one}", bank, state, width) for one in both], 1),
        "prompts.state_flows.state": torch.cat([take(f"PFL_{one}.state", 1, width) for one in both]),
        "prompts.state_flows.u": torch.cat([take(f"PFL_{one}.amor_u", 1, flows, width, 1)[..., 0] for one in both]),
        "prompts.state_flows.w": torch.cat([take(f"PFL_{one}.amor_w", 1, flows, 1, width)[:, :, 0] for one in both]),
        "prompts.state_flows.b": torch.cat([take(f"PFL_{one}.amor_b", 1, flows, 1, 1)[..., 0, 0] for one in both]),
        "interaction.weight": torch.stack([take(f"RCA.linear_proj.{n}.weight", dim, tower).T for n in range(levels)]),
        "interaction.query.weight": take("RCA.q_proj_pre.weight", dim, dim, 1)[..., 0],
        "interaction.query.bias": take("RCA.q_proj_pre.bias", dim),
        "pixel_scale": take("temperature_pixel"),
        "image_scale": take("temperature_image"),
        **dict(encoder("prompts.context_flow.encoder", "context_encoder", ("PFL_context.encoder",))),
        **dict(encoder("prompts.state_flows.encoder", "state_encoder", tuple(f"PFL_{one}.encoder" for one in both))),
        **dict(linear("prompts.context_flow.u", "PFL_context.amor_u", flows * width, dim)),
        **dict(linear("prompts.context_flow.w", "PFL_context.amor_w", flows * width, dim)),
        **dict(linear("prompts.context_flow.b", "PFL_context.amor_b", flows, dim)),
        **dict(linear("text_map", "class_mapping", dim, dim)),
    }
    sizes = {"bank": bank, "context": context, "state": state, "flows": flows}
    options: dict[str, Any] = {
        "backbone": {"class_path": "clip", "init_args": {"activation": "gelu", "levels_at": "block"}},
        "prompts": {"class_path": _PROMPTS, "init_args": sizes},
    }
    if re.search(r"epoch_post_\d+_1\.pth$", name):
        return options | {"adapter": {"class_path": _NO_ADAPTER}}, heads
    inside = take("fuse.compress.weight", 1, None).shape[1]
    heads |= linear("adapter.join", "fuse.fuse_modules", inside, levels * tower)
    heads["adapter.weigh.weight"] = take("fuse.compress.weight", 1, inside)  # a softmax does not see its bias
    heads |= linear("adapter.lift", "fuse.post_process", dim, inside)
    heads |= linear("adapter.map", "image_mapping", dim, dim)
    return options, heads
