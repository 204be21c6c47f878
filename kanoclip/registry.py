"""Short names for components, expanded to import paths before anything is parsed or imported.

Kind = argument name = YAML key. Only strings are touched here, so that a mistyped name is answered at once.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from kanoclip.types import KanoclipError

NAMES: dict[str, dict[str, str]] = {
    "data": {
        "mvtec": "kanoclip.data.sets.mvtec.MVTecAD",
        "mpdd": "kanoclip.data.sets.mvtec.MPDD",
        "btad": "kanoclip.data.sets.mvtec.BTAD",
        "dtd_synthetic": "kanoclip.data.sets.mvtec.DTDSynthetic",
        "mvtec_loco": "kanoclip.data.sets.mvtec.MVTecLOCO",
        "mvtec_ad2": "kanoclip.data.sets.mvtec.MVTecAD2",
        "visa": "kanoclip.data.sets.visa.VisA",
        "real_iad": "kanoclip.data.sets.real_iad.RealIAD",
        "ksdd": "kanoclip.data.sets.kolektor.KolektorSDD",
        "ksdd_anomalyclip": "kanoclip.data.sets.kolektor.KolektorSDDAnomalyCLIP",
        "ksdd_adaclip": "kanoclip.data.sets.kolektor.KolektorSDDAdaCLIP",
        "ksdd2": "kanoclip.data.sets.kolektor.KolektorSDD2",
        "dagm": "kanoclip.data.sets.kolektor.DAGM",
        "magnetic_tile": "kanoclip.data.sets.inspection.MagneticTile",
        "rsdds": "kanoclip.data.sets.inspection.RSDDs",
        "crackforest": "kanoclip.data.sets.inspection.CrackForest",
        "elpv": "kanoclip.data.sets.inspection.ELPV",
        "deeppcb": "kanoclip.data.sets.inspection.DeepPCB",
        "brainmri": "kanoclip.data.sets.head.BrainMRI",
        "br35h": "kanoclip.data.sets.head.Br35H",
        "headct": "kanoclip.data.sets.head.HeadCT",
        "bmad_brain": "kanoclip.data.sets.bmad.BMADBrain",
        "bmad_liver": "kanoclip.data.sets.bmad.BMADLiver",
        "bmad_resc": "kanoclip.data.sets.bmad.BMADRESC",
        "bmad_oct2017": "kanoclip.data.sets.bmad.BMADOCT2017",
        "bmad_rsna": "kanoclip.data.sets.bmad.BMADRSNA",
        "bmad_camelyon": "kanoclip.data.sets.bmad.BMADCamelyon",
        "isic2016": "kanoclip.data.sets.medical.ISIC2016",
        "cvc_colondb": "kanoclip.data.sets.medical.ColonDB",
        "cvc_clinicdb": "kanoclip.data.sets.medical.ClinicDB",
        "kvasir": "kanoclip.data.sets.medical.Kvasir",
        "endo": "kanoclip.data.sets.medical.Endo",
        "tn3k": "kanoclip.data.sets.medical.TN3K",
        "busi": "kanoclip.data.sets.medical.BUSI",
        "meta_json": "kanoclip.data.sets.meta_json.MetaJson",
        "folder": "kanoclip.data.sets.folder.Folder",
        "manifest": "kanoclip.data.sets.manifest.Manifest",
        "joined": "kanoclip.data.sets.joined.Joined",
        "synthetic": "kanoclip.data.drawn.synthetic.Synthetic",
        "surfaces": "kanoclip.data.drawn.surfaces.Surfaces",
        "surfaces_auxiliary": "kanoclip.data.drawn.surfaces.SurfacesAuxiliary",
        "surfaces_defects": "kanoclip.data.drawn.surfaces.SurfacesDefects",
    },
    "model": {
        "kanoclip": "kanoclip.models.kanoclip.KAnoCLIP",
        "clip": "kanoclip.models.ablations.CLIP",
        "clip_vv": "kanoclip.models.ablations.CLIPVV",
        "clip_vv_knpl": "kanoclip.models.ablations.CLIPVVKnPL",
        "clip_vv_knpl_bicmci": "kanoclip.models.ablations.CLIPVVKnPLBiCMCI",
        "kanoclip_no_vv": "kanoclip.models.ablations.KAnoCLIPNoVV",
        "kanoclip_no_knpl": "kanoclip.models.ablations.KAnoCLIPNoKnPL",
        "kanoclip_no_kd": "kanoclip.models.ablations.KAnoCLIPNoKD",
        "kanoclip_no_bicmci": "kanoclip.models.ablations.KAnoCLIPNoBiCMCI",
        "kanoclip_no_adapter": "kanoclip.models.ablations.KAnoCLIPNoAdapter",
        "winclip": "kanoclip.models.rivals.winclip.WinCLIP",
        "april_gan": "kanoclip.models.rivals.april_gan.AprilGAN",
        "anomalyclip": "kanoclip.models.rivals.anomalyclip.AnomalyCLIP",
        "aa_clip": "kanoclip.models.rivals.aa_clip.AACLIP",
        "faprompt": "kanoclip.models.rivals.faprompt.FAPrompt",
        "adaclip": "kanoclip.models.rivals.adaclip.AdaCLIP",
        "bayes_pfl": "kanoclip.models.rivals.bayes_pfl.BayesPFL",
        "af_clip": "kanoclip.models.rivals.af_clip.AFCLIP",
        "mrad_tf": "kanoclip.models.rivals.mrad.MRADTF",
        "mrad_ft": "kanoclip.models.rivals.mrad.MRADFT",
        "mrad_clip": "kanoclip.models.rivals.mrad_clip.MRADCLIP",
        "vcp_clip": "kanoclip.models.rivals.vcp_clip.VCPCLIP",
        "cops": "kanoclip.models.rivals.cops.CoPS",
        "multiads": "kanoclip.models.rivals.multiads.MultiADS",
        "filo": "kanoclip.models.rivals.filo.FiLo",
        "local_stats": "kanoclip.models.baselines.LocalStats",
    },
    "backbone": {
        "clip": "kanoclip.backbone.clip.CLIPBackbone",
        "embedded": "kanoclip.backbone.embedded.EmbeddedBackbone",
    },
    "attention": {name.lower(): f"kanoclip.backbone.attention.{name}" for name in ("QKV", "VV", "QQ", "KK", "CSA")},
    "prompts": {
        "ensemble": "kanoclip.heads.prompts.EnsemblePrompts",
        "learned": "kanoclip.heads.prompts.LearnedPrompts",
        "object_agnostic": "kanoclip.heads.prompts.ObjectAgnosticPrompts",
        "projected": "kanoclip.heads.projections.ProjectedPrompts",
        "fine_grained": "kanoclip.heads.fine_grained.FineGrainedPrompts",
        "bayesian": "kanoclip.heads.bayesian_prompts.BayesianPrompts",
        "prefix": "kanoclip.heads.prefix.PrefixPrompts",
        "pre_vcp": "kanoclip.heads.pre_vcp.PreVCP",
        "synthesized": "kanoclip.heads.synthesized_prompts.SynthesizedPrompts",
        "defects": "kanoclip.heads.defects.DefectPrompts",
        "fg_des": "kanoclip.heads.fg_des.FGDes",
        "regional": "kanoclip.heads.regional_prompts.RegionalPrompts",
    },
    "interaction": {
        "none": "kanoclip.heads.interaction.NoInteraction",
        "linear": "kanoclip.heads.interaction.LinearInteraction",
        "level_projection": "kanoclip.heads.interaction.LevelProjection",
        "bi_cmci": "kanoclip.heads.interaction.BiCMCI",
        "text_to_patch": "kanoclip.heads.interaction.TextToPatch",
        "patch_to_text": "kanoclip.heads.interaction.PatchToText",
        "rca": "kanoclip.heads.rca.RCA",
        "mmci": "kanoclip.heads.mmci.MMCI",
        "post_vcp": "kanoclip.heads.post_vcp.PostVCP",
    },
    "adapter": {
        "none": "kanoclip.heads.adapter.NoAdapter",
        "linear": "kanoclip.heads.adapter.LinearAdapter",
        "projection": "kanoclip.heads.hybrid.ClassProjection",
        "conv": "kanoclip.heads.adapter.ConvAdapter",
        "patch_mean": "kanoclip.heads.projections.PatchMean",
        "silu": "kanoclip.heads.silu_adapter.SiLUAdapter",
        "level_fusion": "kanoclip.heads.level_fusion.LevelFusion",
    },
    "score": {
        "global": "kanoclip.heads.scoring.GlobalScore",
        "map_max": "kanoclip.heads.scoring.MapMaxScore",
        "mean": "kanoclip.heads.scoring.MeanScore",
        "top_k": "kanoclip.heads.scoring.TopKScore",
        "peak": "kanoclip.heads.defects.PeakScore",
    },
    "tuning": {
        "none": "kanoclip.backbone.tuning.NoTuning",
        "residual": "kanoclip.backbone.residual.ResidualTuning",
        "deep_tokens": "kanoclip.backbone.deep_tokens.DeepTokens",
    },
    "memory": {
        "none": "kanoclip.heads.memory.NoMemory",
        "patches": "kanoclip.heads.patch_memory.PatchMemory",
        "labelled": "kanoclip.heads.labelled_memory.LabelledMemory",
        "labelled_projected": "kanoclip.heads.labelled_memory.ProjectedMemory",
    },
    "kd_loss": {
        "none": "kanoclip.heads.losses.NoKD",
        "mean_margin": "kanoclip.heads.losses.MeanMarginKD",
        "mean": "kanoclip.heads.losses.MeanKD",
        "contrastive": "kanoclip.heads.losses.ContrastiveKD",
    },
}

IMPORTED = ("april_gan", "anomalyclip", "aa_clip", "faprompt", "adaclip", "bayes_pfl", "af_clip", "mrad_tf", "mrad_ft",
            "mrad_clip", "vcp_clip", "cops", "multiads", "filo")  # fmt: skip
"""Models with a ``from_published``: those whose authors' weights can be read."""
LISTS = {"sets": "data"}
"""Options that are a list of components -> their kind."""
WHICH_DATA = "For photos of your own: --data folder --data.root PATH. All names: kanoclip list data."

_HEADS = ("prompts", "interaction", "adapter", "scoring", "losses")
_SETS = ("mvtec", "visa", "real_iad", "kolektor", "inspection", "head", "bmad", "medical", "meta_json", "folder",
         "manifest", "tree")  # fmt: skip
MOVED = {
    **{f"kanoclip.{name}": f"kanoclip.heads.{name}" for name in _HEADS},
    **{f"kanoclip.data.{name}": f"kanoclip.data.sets.{name}" for name in _SETS},
    "kanoclip.data.surfaces": "kanoclip.data.drawn.surfaces",
    "kanoclip.KAnoCLIP": "kanoclip.models.kanoclip.KAnoCLIP",
    "kanoclip.models.rivals.WinCLIP": "kanoclip.models.rivals.winclip.WinCLIP",
    "kanoclip.models.rivals.AprilGAN": "kanoclip.models.rivals.april_gan.AprilGAN",
    "kanoclip.models.rivals.AnomalyCLIP": "kanoclip.models.rivals.anomalyclip.AnomalyCLIP",
}  # fmt: skip
"""Modules and classes that moved since version 0.1.0, as its configs and checkpoints name them; public names."""

Class = TypeVar("Class", bound=type)


class UnknownNameError(KanoclipError):
    """A short name that is not registered."""


def moved(path: str) -> str:
    """Return where a class of version 0.1.0 is now; any other path as it is."""
    return MOVED.get(path) or f"{MOVED.get(path.rpartition('.')[0], path.rpartition('.')[0])}.{path.rpartition('.')[2]}"


def register(kind: str, name: str) -> Callable[[Class], Class]:
    """Give a class of your own a short name: ``@register("adapter", "gated")`` above it.

    Raises:
        KanoclipError: If the kind does not exist, or the name is taken by another class.
    """
    if kind not in NAMES:
        raise KanoclipError(f"Unknown kind {kind!r}. Kinds are {', '.join(NAMES)}.")

    def add(cls: Class) -> Class:
        path = f"{cls.__module__}.{cls.__qualname__}"
        if NAMES[kind].setdefault(name, path) != path:
            raise KanoclipError(f"The {kind} {name!r} is {NAMES[kind][name]} already. Choose another name for {path}.")
        return cls

    return add


def available(kind: str) -> list[str]:
    """Return the registered names of a kind."""
    return list(NAMES[kind])


def name_of(kind: str, path: str) -> str:
    """Return the short name of an import path, or the path itself."""
    return next((name for name, known in NAMES[kind].items() if known == path), path)


def resolve(kind: str, name: str, where: str = "") -> str:
    """Turn a short name into an import path; leave paths, JSON and class names as they are.

    Raises:
        UnknownNameError: If it looks like a short name (lower case, no dot) and is not registered.
    """
    if name in NAMES[kind]:
        return NAMES[kind][name]
    if name.startswith("kanoclip."):
        return moved(name)
    if not name.isidentifier() or name != name.lower() or name == "null":
        return name
    known = (
        f"Registered names: {', '.join(NAMES[kind])}. For a class of your own give its import path, such as my_lab.X."
    )
    known = WHICH_DATA if kind == "data" else known  # which are 40
    raise UnknownNameError(f"Unknown {kind} {name!r}{where}.{did_you_mean(name, NAMES[kind])} {known}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known word that is nearest, or "" if none is near."""
    lowered = {one.lower(): one for one in known}
    close = get_close_matches(word.lower(), lowered, 1)
    return f" Did you mean {lowered[close[0]]!r}?" if close else ""


def load_class(path: str) -> Any:
    """Import the class of an import path.

    Raises:
        UnknownNameError: If there is none.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise UnknownNameError(f"{path!r} is no name and no import path such as mypackage.MyClass.")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnknownNameError(f"Cannot import {path}: {error}.") from error


def expand(config: Any, where: str = "", kind: str | None = None) -> Any:
    """Replace short names by import paths throughout a parsed config; ``trainer`` is left alone.

    Args:
        config: A mapping as read from YAML, or any part of it.
        where: Added to the message of an unknown name, such as " in configs/mine.yaml".
        kind: Kind of component that ``config`` itself is.
    """
    if kind and isinstance(config, str):
        return resolve(kind, config, where)
    if not isinstance(config, dict):
        return config
    expanded: dict[Any, Any] = {}
    for key, value in config.items():
        if kind and key == "class_path" and isinstance(value, str):
            expanded[key] = resolve(kind, value, where)
        elif key == "trainer":
            expanded[key] = value
        elif key in LISTS and isinstance(value, list):
            expanded[key] = [expand(one, where, LISTS[key]) for one in value]
        else:
            expanded[key] = expand(value, where, key if key in NAMES else None)
    return expanded


def summary(path: str) -> str:
    """Return the first line of a class's docstring, read from the source: importing all classes would take seconds."""
    module, _, name = path.rpartition(".")
    file = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not module.startswith("kanoclip.") or not file.is_file():
        return ""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    found = next((node for node in body if isinstance(node, ast.ClassDef) and node.name == name), None)
    return (ast.get_docstring(found) or "").split("\n")[0] if found else ""
