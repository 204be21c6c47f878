"""What a checkpoint says: which model to build, what it was fitted on, and whether it belongs to the model at hand.

A checkpoint holds heads alone, and loads without unpickling. Beside them it has an entry ``kanoclip``, see ``about``.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kanoclip import __version__
from kanoclip.data.parsing import local_path
from kanoclip.knowledge.base import SHIPPED
from kanoclip.models.contents import FORMAT, SHOWN, CheckpointError, check_entry, check_trust, leaves
from kanoclip.registry import NAMES, expand, load_class
from kanoclip.types import MissingError

FREE = ("score", "sigma", "blur", "memory", "top_k", "text_weight", "defects")
"""Options of a model that no head depends on: a test may change them; but see ``free_options``."""
HEADS = ("backbone", "attention", "prompts", "interaction", "adapter", "tuning", "temperature", "windows")
"""Options that heads depend on; those beside them, such as lr, decide a fit alone."""
SIMPLE = (bool, int, float, str, type(None))

Config = dict[str, Any]


def free_options(memory: Any) -> tuple[str, ...]:
    """Return the options in ``FREE``, but for a memory that a fit fills, given as itself or as its class."""
    return tuple(name for name in FREE if name != "memory" or not getattr(memory, "fitted", False))


def run_seed() -> int | None:
    """Return the seed of ``seed_everything``, by which heads and order are drawn; None if nothing was seeded."""
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning keeps it
    return int(seed) if seed else None


def about(model: Any, data: Any, seed: int | None) -> Config:
    """Return what a checkpoint tells beside the weights.

    Args:
        model: An ``AnomalyModule``.
        data: The data module it is fitted on, if it is one of ours.
        seed: Of the fit.
    """
    digests = model.fitted_images
    return {
        "format": FORMAT,
        "version": __version__,
        "model": model.name,
        "components": model.describe_components(),
        "settings": settings(model),
        "backbone": backbone_of(model),
        "seed": seed,
        "auxiliary": model.auxiliary,
        "categories": list(getattr(data, "categories", [])),
        "data": plain(data.fit_options()) if hasattr(data, "fit_options") else {},
        "images": None if digests is None else torch.tensor(sorted(digests), dtype=torch.int64),
        "samples": data.samples_digest("fit") if hasattr(data, "samples_digest") else None,
        **({"knowledge": files} if (files := own_files(model)) else {}),
        "optimiser": plain(model.optimiser),
        "random_state": torch.get_rng_state(),
    }


def own_files(model: Any) -> dict[str, str | None]:
    """Return the files of knowledge that a fit has read and that do not ship, see ``AnomalyModule.read_files``."""
    files: dict[str, str | None] = getattr(model, "read_files", {})
    return {name: content for name, content in files.items() if not name.startswith(SHIPPED)}


def read_checkpoint(path: str | Path) -> tuple[Config, Config]:
    """Read what a checkpoint says of itself and of its model's options; no weight is read and nothing in it is run.

    Returns:
        The entry ``kanoclip``, and the model as ``{"class_path": ..., "init_args": ...}``, empty for a model that was
        built in Python.

    Raises:
        MissingError: If there is no such file.
        CheckpointError: If it is damaged, no checkpoint of kanoclip, or one of a newer version.
    """
    content = _read(path)
    given = moved_options(content["hyper_parameters"])
    given.pop("_instantiator", None)
    class_path = given.pop("_class_path", None)
    return content["kanoclip"], {"class_path": class_path, "init_args": given} if class_path else {}


def _read(path: str | Path) -> Config:
    """Return the content of a checkpoint; raises as ``read_checkpoint``."""
    file = local_path(f"{path}", "--ckpt_path")
    if not file.is_file():
        raise MissingError(f"No checkpoint at {file}. Give --ckpt_path a file such as runs/fit/.../last.ckpt.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds, of what is in the file
        raise CheckpointError(
            f"{file} is damaged, or no checkpoint of kanoclip ({type(error).__name__}). Give --ckpt_path another one "
            f"from runs/fit, or fit anew."
        ) from error
    check_entry(content, f"{file}")
    return {"hyper_parameters": {}, **content}


def moved_options(given: Config) -> Config:
    """Return the options of a model as a checkpoint keeps them, with today's import paths of its classes."""
    if "_class_path" in given:
        given = {**given, "_class_path": expand(given["_class_path"], kind="model")}
    return dict(expand(given))


def up_to_date(path: str | Path, model: type, instead: Config) -> str | Path | BytesIO:
    """Return a checkpoint for Lightning to load: the path, or the content with moved import paths if it is older.

    Args:
        path: The checkpoint.
        model: Class that it should be of.
        instead: Options that are given instead of its own.

    Raises:
        CheckpointError: If it is of another class, or names what is neither kanoclip's nor imported, see
            ``check_trust``.
    """
    content = _read(path)
    content["hyper_parameters"] = options = moved_options(content["hyper_parameters"])
    typed = {one for _, one in leaves(instead, "", "") if isinstance(one, str)}
    check_trust({**options, "_instantiator": "", **instead}, typed, f"{path}")
    if "_class_path" in options and not issubclass(load_class(options["_class_path"]), model):
        raise CheckpointError(
            f"{path} is of {options['_class_path']}, which is no {model.__name__}. Load it by its own."
        )
    if content["kanoclip"].get("format", 1) == FORMAT:
        return path
    buffer = BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return buffer


def check_agreement(entry: Config, options: Config, model: Any, data: Any = None) -> None:
    """Compare a checkpoint with the model that was built, and with the data if a fit is to go on with it.

    Args:
        entry: The checkpoint's entry ``kanoclip``.
        options: Its ``hyper_parameters``.
        model: An ``AnomalyModule``. What it has in ``HEADS`` must be as fitted; if ``model.strict_options``, the other
            options too. ``FREE`` ones may differ.
        data: The data module of a fit that is resumed; None otherwise.

    Raises:
        CheckpointError: Naming the option and both values.
    """
    theirs, mine = entry["backbone"], backbone_of(model)
    if model.strict_options:
        check_name(entry, model.name)
    if theirs["fingerprint"] != mine["fingerprint"]:
        raise CheckpointError(
            f"The checkpoint was fitted with model.backbone {theirs['description'][:SHOWN]} "
            f"({theirs['fingerprint'][:12]}), "
            f"but {mine['description']} ({mine['fingerprint'][:12]}) is asked for. Leave out --model.backbone, choose "
            f"the same one, or fit anew."
        )
    fitted, built = _fitted_settings(entry, options), settings(model)
    for name in built:
        counts = model.strict_options or name.partition(".")[0] in HEADS
        if counts and name in fitted and fitted[name] != built[name]:
            if name in options and options[name] == built[name]:
                raise CheckpointError(
                    f"The checkpoint says that it was fitted with model.{name} {f'{fitted[name]}'[:SHOWN]}, but its "
                    f"own options say {f'{built[name]}'[:SHOWN]}. Give --ckpt_path another one from runs/fit, or fit "
                    f"anew."
                )
            raise _contradiction(f"model.{name}", fitted[name], built[name])
    if data is not None:
        _check_fit(entry, model, data)


def check_name(entry: Config, name: str) -> None:
    """Raise if a checkpoint is one of another model; this can be told before a model is built."""
    if entry["model"] != name:
        raise _contradiction("model", entry["model"], name)


def _check_fit(entry: Config, model: Any, data: Any) -> None:
    """Check that a fit goes on as it began: with its samples in their order, their pixels, and its optimiser."""
    identity, samples = getattr(data, "identity", None) or "unnamed data", entry.get("samples")
    if entry.get("format", 1) < 2:
        raise CheckpointError(
            f"The checkpoint is of kanoclip {entry['version']}, which did not tell its samples, so a fit cannot go on "
            f"with it. Test it, or leave out --ckpt_path to fit anew."
        )
    others = samples != (data.samples_digest("fit") if hasattr(data, "samples_digest") else None)
    unlike = CheckpointError(
        f"The checkpoint was fitted on {entry['auxiliary']}; the images of {identity} are others than those were. "
        f"Leave out --ckpt_path to fit anew."
    )
    if entry["auxiliary"] != identity and (others or samples is None):
        raise unlike
    now = plain(data.fit_options()) if hasattr(data, "fit_options") else {}
    for name, value in entry["data"].items():
        if name in now and now[name] != value:
            option = "seed_everything" if name == "seed" else f"data.{name}"
            raise CheckpointError(
                f"The checkpoint was fitted with data.{name} {value}, but {now[name]} is asked for. "
                f"Give --{option} {value}, or leave out --ckpt_path to fit anew."
            )
    if others:
        raise unlike
    for name in sorted({*entry["optimiser"], *model.optimiser}):
        if entry["optimiser"].get(name) != model.optimiser.get(name):
            raise _contradiction(name, entry["optimiser"].get(name), model.optimiser.get(name))


def _contradiction(option: str, fitted: Any, asked: Any) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint was fitted with {option} {f'{fitted}'[:SHOWN]}, but {f'{asked}'[:SHOWN]} is asked for. "
        f"Leave out --{option}, or fit anew."
    )


def settings(model: Any, free: bool = False) -> Config:
    """Return the options of a built model as plain values, defaults included: ``adapter`` and ``adapter.reduction``.

    Of the backbone its settings alone: its fingerprint tells the rest.

    Args:
        model: An ``AnomalyModule``.
        free: Also those in ``FREE``.
    """
    left = () if free else free_options(getattr(model, "memory", None))
    found: Config = {}
    for kind, name in model.describe_components().items():
        if kind not in (*left, "backbone"):
            found |= {kind: name} | {f"{kind}.{k}": v for k, v in settings_of(getattr(model, kind)).items()}
    found |= {f"backbone.{k}": v for k, v in getattr(getattr(model, "backbone", None), "settings", {}).items()}
    found |= {k: v for k, v in model.hparams.items() if k[0] != "_" and k not in (*NAMES, *left)}
    if free and isinstance(lists := model.hparams.get("defects"), dict):  # of each category
        found |= {f"defects.{category}": names for category, names in lists.items()}
    return _simple(found)


def _fitted_settings(entry: Config, options: Config) -> Config:
    """Return the settings that a checkpoint was fitted with; one of version 0.1.0 tells them in three places."""
    if "format" in entry:
        return dict(entry["settings"])
    kinds = {kind: name for kind, name in entry["components"].items() if kind not in (*FREE, "backbone")}
    given = {k: v for k, v in options.items() if k[0] != "_" and k not in NAMES and k not in FREE}
    return _simple(kinds | given | entry.get("settings", {}))


def settings_of(component: nn.Module) -> Config:
    """Return the public attributes of a component that are neither weights nor modules."""
    return {name: value for name, value in vars(component).items() if name[0] != "_" and name != "training"}


def backbone_of(model: Any) -> dict[str, str]:
    """Return the description and the fingerprint of a model's backbone."""
    backbone = getattr(model, "backbone", None)
    return {key: getattr(backbone, key, "none") for key in ("description", "fingerprint")}


def zero_shot(fitted: Tensor | Collection[int] | None, tested: Iterable[int] | None) -> bool | None:
    """Tell whether no tested image was among the fitted ones, by the digests of their contents.

    Returns:
        None if either is not known.
    """
    if fitted is None or tested is None:
        return None
    seen = set(fitted.tolist() if isinstance(fitted, Tensor) else fitted)
    return seen.isdisjoint(tested)


def plain(value: Any) -> Any:
    """Turn NumPy's numbers, paths and tuples into Python's numbers, texts and lists; all else stays as it is."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _simple(found: Config) -> Config:
    """Keep what is a number, a text or a list of them, as plain values."""
    found = {name: plain(value) for name, value in found.items()}
    return {k: v for k, v in found.items() if all(type(one) in SIMPLE for one in (v if isinstance(v, list) else [v]))}
