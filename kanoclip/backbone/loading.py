"""Load a CLIP model by open_clip, with errors that say what to do."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import open_clip
from open_clip.transformer import QuickGELU
from safetensors import SafetensorError
from torch import Tensor, nn

from kanoclip.registry import did_you_mean
from kanoclip.types import KanoclipError, MissingError

TIMEOUT = 6.0  # seconds to wait for the first answer of a server before saying that there is no network
LOCAL_DIR = "local-dir:"  # open_clip's prefix for a folder with open_clip_config.json and the weights
HF_HUB = "hf-hub:"  # its prefix for a repository of Hugging Face with the same content
SCHEMES = (LOCAL_DIR, HF_HUB)
OPENAI = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}  # of colours: the default

_log = logging.getLogger(__name__)


class BackboneUnavailableError(KanoclipError, RuntimeError):
    """The weights are not on this machine and cannot be downloaded."""


def load(name: str, pretrained: str | None) -> tuple[Any, Callable[..., Tensor]]:
    """Build an open_clip model in float32 with its weights, and its tokenizer.

    Args:
        name: Name of an open_clip model; or ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``, which bring their own
            weights: ``pretrained`` is then ignored.
        pretrained: Tag of the weights, path of a local file (safetensors, or a torch file that holds tensors only),
            or None for random weights.

    Raises:
        BackboneUnavailableError: If the weights must be downloaded and cannot be.
        MissingError: If ``pretrained`` is a path where no file is.
        KanoclipError: If the name or the tag is unknown, the file does not fit, or the architecture is not supported.
    """
    if name.startswith(LOCAL_DIR):
        name = f"{LOCAL_DIR}{Path(name.removeprefix(LOCAL_DIR)).expanduser()}"
    with _root_logger_untouched():
        if name.startswith(SCHEMES):
            with _remedies(name, None):
                if name.startswith(HF_HUB) and not _cached(name.removeprefix(HF_HUB), ["open_clip_config.json"]):
                    _ask(huggingface_hub.constants.ENDPOINT)
                try:
                    config = open_clip.get_model_config(name)
                except (AttributeError, RecursionError):  # valid JSON of another shape
                    config = None
                _check_supported(name, config)
                return open_clip.create_model(name, require_pretrained=True), _tokenizer(name, config)
        name = name.replace("/", "-")
        config = open_clip.get_model_config(name)
        if config is None:
            raise KanoclipError(f"Unknown CLIP model {name[:200]!r}.{_nearest(name, open_clip.list_models())}")
        _check_supported(name, config)
        if pretrained is None:
            return open_clip.create_model(name), _tokenizer(name, config)
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained in tags:
            with _remedies(name, pretrained):
                recipe = open_clip.get_pretrained_cfg(name, pretrained)
                preprocess = {key: recipe[key] for key in ("mean", "std") if key in recipe}
                # The tag decides the activation. open_clip itself takes that of the name and warns if they differ, as
                # they do in our default: openai was trained with QuickGELU, ViT-L-14-336 says GELU.
                return open_clip.create_model(
                    name,
                    _download(recipe, name, pretrained),
                    quick_gelu=recipe.get("quick_gelu", False),
                    force_preprocess_cfg=preprocess,
                ), _tokenizer(name, config)
        return _load_file(name, pretrained, config, tags), _tokenizer(name, config)


def _load_file(name: str, pretrained: str, config: dict[str, Any], tags: list[str]) -> Any:
    path = Path(pretrained).expanduser()
    if not path.is_file():
        if path.is_dir():
            raise KanoclipError(
                f"{path} is a folder, expected a .safetensors or .pt file of {name}. A folder with "
                f"open_clip_config.json is given as --model.backbone.name {LOCAL_DIR}{pretrained}."
            )
        if path.suffix or os.sep in pretrained:
            raise MissingError(
                f"No weights at {path}: expected a .safetensors or .pt file of {name}. "
                f"Give its path as --model.backbone.pretrained, or try --model.backbone embedded, which needs no file."
            )
        raise KanoclipError(f"{name} has no weights called {pretrained[:200]!r}.{_nearest(pretrained, tags)}")
    # A file does not say its activation and colours. Take those of the tag in its name, or of all tags if they agree.
    named = [tag for tag in tags if tag in re.sub(r"\W", "_", path.stem.lower())]
    recipes = {tag: open_clip.get_pretrained_cfg(name, tag) for tag in (named if len(named) == 1 else tags)}
    colours = {tag: {k: tuple(recipe.get(k, own)) for k, own in OPENAI.items()} for tag, recipe in recipes.items()}
    gelus = {recipe.get("quick_gelu", False) for recipe in recipes.values()}
    options: dict[str, Any] = {"quick_gelu": config.get("quick_gelu", False)}
    others = [tag for tag, pair in colours.items() if pair != OPENAI]
    if others and all(pair == colours[others[0]] for pair in colours.values()):
        options["force_preprocess_cfg"] = colours[others[0]]
    elif others:
        _log.warning(
            "%s is read with OpenAI's mean and std of colours. If it is %s, put that tag into the name of the file.",
            path,
            " or ".join(others),
        )
    if len(gelus) == 1:
        options["quick_gelu"] = gelus.pop()
    elif gelus and not options["quick_gelu"]:
        _log.warning(
            "%s is read as weights trained with GELU. For OpenAI's own weights use --model.backbone.name %s-quickgelu.",
            path,
            name,
        )
    try:
        return open_clip.create_model(name, str(path), **options)
    except Exception as error:  # open_clip alone runs here, and a file of anything else fails in any way
        remedy = "Give the file of this very model, or the model of this file with --model.backbone.name."
        if "TorchScript" in str(error):  # as OpenAI published its weights
            remedy = (
                "A TorchScript archive can hold code: take its tensors out once with: "
                'python -c "import torch, safetensors.torch as s; '
                f"d = torch.jit.load('{path}', 'cpu').float().state_dict(); "
                "s.save_file({k: v.contiguous() for k, v in d.items() if v.ndim or k == 'logit_scale'}, "
                "'clip.safetensors')\""
            )
        raise KanoclipError(f"{path} does not hold weights of {name} ({_first_line(error)}). {remedy}") from error


def set_activation(model: Any, activation: str) -> None:
    """Let both towers of an open_clip model compute ``gelu`` or ``quick_gelu``.

    Raises:
        KanoclipError: For anything else.
    """
    kinds: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}
    if activation not in kinds:
        raise KanoclipError(
            f"activation is {activation!r}, expected gelu or quick_gelu. Use --model.backbone.activation gelu."
        )
    if hasattr(model.visual, "trunk"):
        raise KanoclipError(
            f"activation is {activation}, but the image tower is timm's and has its own. Leave out "
            f"--model.backbone.activation."
        )
    for block in [module for module in model.modules() if hasattr(module, "gelu")]:  # open_clip's name for any of them
        block.gelu = kinds[activation]()


def _check_supported(name: str, config: Any) -> None:
    """Refuse, before any download, a model that the second path or the learned prompts cannot use.

    Raises:
        KanoclipError: Saying why.
    """
    vision, text = (config.get(key) if isinstance(config, dict) else None for key in ("vision_cfg", "text_cfg"))
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise KanoclipError(f"{name}: open_clip_config.json should have a model_cfg with vision_cfg and text_cfg.")
    custom = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
    why = None
    timm = str(vision.get("timm_model_name", ""))
    if timm and not (re.match("(vit(?!_relpos)|eva)", timm) and vision.get("timm_pool") in ("token", "map")):
        why = f"its image tower is timm's {timm}, which is no plain vision transformer"
    elif isinstance(vision.get("layers"), list):
        why = "its image tower is a ResNet"
    elif vision.get("attentional_pool") or "multimodal_cfg" in config or text.get("embed_cls"):
        why = "it is a CoCa, which pools by attention"
    elif not timm and vision.get("pool_type", "tok") != "tok":
        why = "its global image feature is not the class token"
    elif text.get("hf_model_name"):
        why = f"its text tower is Hugging Face's {text['hf_model_name']}"
    elif any(c.get(key) for c in (vision, text) for key in custom) or "custom" in (
        vision.get("block_type"),
        text.get("block_type"),
    ):
        why = "its blocks are not CLIP's plain ones"
    if why:
        raise KanoclipError(
            f"{name} cannot be the backbone: {why}. Use a model whose image tower is a plain vision transformer, "
            f"such as ViT-B-16, ViT-L-14-336, ViT-H-14, ViT-B-16-SigLIP2 or EVA02-L-14."
        )


def _tokenizer(name: str, config: dict[str, Any]) -> Callable[..., Tensor]:
    if config["text_cfg"].get("hf_tokenizer_name"):  # which may come with code of its own: a model is not to be trusted
        local = {"local_files_only": True} if name.startswith(LOCAL_DIR) else {}  # nor may a folder fetch anything
        try:
            with _remedies(name, "tokenizer"):
                return open_clip.get_tokenizer(name, trust_remote_code=False, **local)
        except ModuleNotFoundError as error:
            raise KanoclipError(
                f"The tokenizer of {name} needs a package that is not there ({error}). Run: "
                f"pip install 'kanoclip[siglip]'"
            ) from error
    merges = Path(name.removeprefix(LOCAL_DIR)) / "bpe.txt.gz"
    if name.startswith(LOCAL_DIR) and merges.is_file():  # a folder may bring its own vocabulary
        return open_clip.get_tokenizer(name, bpe_path=str(merges))
    return open_clip.get_tokenizer(name, config)


def _download(recipe: dict[str, Any], name: str, tag: str) -> str:
    """Return the path of the weights of a tag: from the cache without a network, else downloaded."""
    repository, _, filename = recipe.get("hf_hub", "").rpartition("/")
    # the names that open_clip itself tries, in its order
    names = [filename] if filename else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    if cached := _cached(repository, names):
        return cached
    _ask(huggingface_hub.constants.ENDPOINT if repository else recipe["url"])
    _log.info("Downloading the weights of %s %s.", name, tag)
    return open_clip.download_pretrained(recipe)


def _cached(repository: str, names: list[str]) -> str | None:
    """Return the path of the first of these files of a Hugging Face repository that is in the cache, or None."""
    found = (huggingface_hub.try_to_load_from_cache(repository, name) for name in names if repository)
    return next((path for path in found if isinstance(path, str)), None)


def _ask(address: str) -> None:
    """Raise ConnectionError if ``address`` does not answer within ``TIMEOUT`` seconds.

    The clients of open_clip would retry for a minute and more. It runs in a thread because the look-up of a host's name
    has no time limit of its own.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    reason = [f"{address} did not answer within {TIMEOUT:.0f} s"]

    def ask() -> None:
        try:
            httpx2.head(address, timeout=TIMEOUT)
            reason[0] = ""
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason[0] = f"{address}: {_first_line(error)}"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if reason[0]:
        raise ConnectionError(reason[0])


@contextmanager
def _remedies(name: str, tag: str | None) -> Iterator[None]:
    """Turn what open_clip, huggingface_hub and urllib raise on the way to the weights into one error.

    Raises:
        BackboneUnavailableError: With what to do.
    """
    try:
        yield
    except KanoclipError:
        raise
    except (
        OSError, RuntimeError, json.JSONDecodeError, SafetensorError, pickle.UnpicklingError,
        huggingface_hub.errors.HFValidationError,
    ) as error:  # fmt: skip
        if name.startswith(LOCAL_DIR):
            raise BackboneUnavailableError(
                f"{name} cannot be read ({_first_line(error)}). Give --model.backbone.name {LOCAL_DIR}FOLDER with "
                f"open_clip_config.json and the weights, or use --model.backbone embedded, which needs no file."
            ) from error
        weights = f"{name} {tag}" if tag else name
        raise BackboneUnavailableError(
            f"The weights of {weights} are not on this machine and could not be downloaded ({_first_line(error)}). "
            f"Give a file with --model.backbone.pretrained /path/to/file.safetensors, "
            f"or use the small backbone that comes with kanoclip: --model.backbone embedded"
        ) from error


@contextmanager
def _root_logger_untouched() -> Iterator[None]:
    """Keep open_clip from adding a handler to the root logger, which would print every line twice."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _nearest(word: str, known: list[str]) -> str:
    return f"{did_you_mean(word, known)} Known: {', '.join(known) or 'none'}."


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[1].strip()}"[:300]
