"""Parts of an auxiliary set that are held out in turn, so that options are chosen without a look at a test set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kanoclip.data.base import AnomalyDataModule
from kanoclip.outputs.tables import METRICS
from kanoclip.types import ANOMALOUS, NORMAL
from kanoclip.verbs.build import build
from kanoclip.verbs.jobs import DATA_SEED, Data
from kanoclip.verbs.specs import PlanError, parse_spec

FOLDS = 3
"""Most folds; categories are dealt out to them in turn."""
SHARE = 0.3
"""Of the images held out where the auxiliary set has one category alone."""


def folds_of(auxiliary: Data, where: str) -> list[tuple[str, Data, Data]]:
    """Divide an auxiliary set: what is held out for a reader, what is fitted on, what is tested on.

    Categories are held out, as those of a test are unseen; of a set of one category a share of its images.
    """
    takes = parse_spec("data", auxiliary.spec, where).init_args
    categories = auxiliary.module.categories
    count = min(FOLDS, len(categories))
    if count > 1 and "category" in takes:
        found = []
        for at in range(count):
            part, label = categories[at::count], f"fold {at + 1} of {count}"
            rest = [one for one in categories if one not in part]
            fit, test = (_changed(auxiliary, label, category=one) for one in (rest, part))
            found.append((", ".join(part), fit, test))
        return found
    if "holdout" not in takes:
        raise PlanError(
            f"{where}: a grid needs folds, and {auxiliary.label} has no option category to hold categories out, nor "
            f"holdout for a share of its images."
        )
    share = takes.holdout or SHARE
    one = _changed(auxiliary, "held out", holdout=share, seed=DATA_SEED)
    return [(f"{100 * share:g} % of the images of {', '.join(categories)}", one, one)]


def _changed(data: Data, label: str, **options: Any) -> Data:
    """Return a data set with other options."""
    spec = {**data.spec, "init_args": {**data.spec["init_args"], **options}}
    changed = replace(
        data,
        label=f"{data.label}, {label}",
        spec=spec,
        key={**data.key, **options},
        seedless=data.seedless and "seed" not in options,
        _found={},
    )
    return replace(changed, module=build(parse_spec("data", changed.seeded(DATA_SEED), label)))


def gives(metric: str, module: Any) -> bool:
    """Whether a metric is defined on what is held out, as far as its labels and masks tell."""
    samples = module.part("test")
    if METRICS[metric].level == "pixel":
        drawn = type(module).read is not AnomalyDataModule.read  # such a set makes its masks
        return any(one.label == ANOMALOUS and (one.masks or drawn) for one in samples)
    found = {(one.category, one.label) for one in samples}
    return any({(category, NORMAL), (category, ANOMALOUS)} <= found for category, _ in found)
