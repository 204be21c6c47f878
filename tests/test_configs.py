"""Every YAML that ships is parsed by the real parser and built, with a tiny backbone where it names a large one."""

import inspect
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jsonargparse import Namespace, dict_to_namespace

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.data.sets.tree import Tree
from kanoclip.registry import NAMES, available, expand, load_class, name_of
from kanoclip.verbs.arguments import prepare
from kanoclip.verbs.plan import read_plan
from kanoclip.verbs.run import KanoclipCLI
from kanoclip.verbs.specs import parse_spec, read_spec

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("ablations/*.yaml"), *CONFIGS.glob("rivals/*.yaml")])
LADDER = ("clip", "clip_vv", "clip_vv_knpl", "clip_vv_knpl_bicmci", "kanoclip")
COMPONENTS = ("backbone", "attention", "prompts", "interaction", "adapter", "score", "kd_loss")


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


FEW = {
    "winclip": ("backbone", "prompts", "score"),
    "faprompt": ("backbone", "attention", "prompts"),
    "adaclip": ("backbone", "attention", "tuning", "prompts", "interaction", "adapter"),
    "bayes_pfl": ("backbone", "attention", "prompts", "interaction", "adapter"),
    "af_clip": ("backbone", "attention", "prompts", "adapter"),
    "aa_clip": ("backbone", "attention", "prompts", "interaction", "adapter", "score", "tuning"),
    "mrad_tf": ("backbone", "attention", "memory", "score"),
    "mrad_ft": ("backbone", "attention", "memory", "score"),
    "mrad_clip": ("backbone", "attention", "memory", "prompts", "score"),
    "cops": ("backbone", "attention", "prompts"),
    "filo": ("backbone", "attention", "prompts", "interaction", "adapter"),
    "vcp_clip": ("backbone", "attention", "prompts", "interaction"),
}


def kinds(path: Path) -> tuple[str, ...]:
    """The components of the model that a config names; some rivals have few."""
    own = (*COMPONENTS, "tuning") if path.stem.startswith("tuning_") else COMPONENTS
    own = FEW.get(path.stem.removesuffix("_few_shot"), own)
    return (*own, "memory") if path.stem.endswith("few_shot") else own


def classes(path: Path) -> dict[str, str]:
    """Kind -> import path of every component that a config names."""
    given = expand(read(path))["model"]["init_args"]
    return {kind: given[kind] if isinstance(given[kind], str) else given[kind]["class_path"] for kind in kinds(path)}


class Parsed(Exception):
    """Carries what was parsed."""


class ParseOnly(KanoclipCLI):
    """Parses as the command does, and stops before anything is built."""

    def before_instantiate_classes(self) -> None:
        raise Parsed(self.config[self.subcommand])


def parse(path: Path) -> Namespace:
    with pytest.raises(Parsed) as stopped:
        ParseOnly(prepare(["fit", "--config", str(path)]))
    return stopped.value.args[0]


def create(section: Namespace, **override: object) -> object:
    module, _, cls = section.class_path.rpartition(".")
    inside = {
        key: create(value) if isinstance(value, Namespace) and "class_path" in value else value
        for key, value in vars(section.get("init_args") or Namespace()).items()
        if key not in override
    }
    return getattr(import_module(module), cls)(**inside, **override)


@pytest.fixture(scope="module")
def tiny(tiny_name, tiny_clip):
    """The tiny CLIP whose levels are read where a model of a config reads them."""
    block = CLIPBackbone(tiny_name, image_size=32, levels_at="block")
    return lambda model: block if model.startswith(("af_clip", "april_gan", "multiads")) else tiny_clip


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_config_is_accepted_and_builds_the_model_and_the_data_it_names(path: Path, tiny) -> None:
    tree = parse(path)
    model = create(tree.model, backbone=tiny(path.stem))
    data = create(tree.data)
    assert model.name == read(path)["model"]["class_path"]
    assert data.name == read(path)["data"]["class_path"]
    built = model.describe_components()
    assert {k: built[k] for k in built if k != "backbone"} == {
        kind: cls.rpartition(".")[2] for kind, cls in classes(path).items() if kind != "backbone"
    }
    assert tree.seed_everything == {"af_clip": 122, "multiads": 42}.get(path.stem, 111)


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_config_names_every_component(path: Path) -> None:
    given = read(path)["model"]["init_args"]
    assert [kind for kind in kinds(path) if given.get(kind) is None] == []


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_the_keys_of_a_config_follow_the_data(path: Path) -> None:
    assert list(read(path)) == ["seed_everything", "data", "model", "trainer"]


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_model_that_learns_says_for_how_long(path: Path, tiny) -> None:
    learns = create(parse(path).model, backbone=tiny(path.stem)).needs_training
    assert ("max_epochs" in read(path)["trainer"]) == learns


def test_each_rung_of_the_ladder_adds_to_the_one_below() -> None:
    rungs = [classes(CONFIGS / "ablations" / f"{rung}.yaml") for rung in LADDER]
    changes = [{k for k in COMPONENTS if below[k] != above[k]} for below, above in pairwise(rungs)]
    assert changes == [{"attention"}, {"prompts", "kd_loss"}, {"interaction"}, {"adapter"}]


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("vv", {"attention": "qkv"}),
        ("knpl", {"prompts": "ensemble", "kd_loss": "none"}),
        ("kd", {"kd_loss": "none"}),
        ("bicmci", {"interaction": "none"}),
        ("adapter", {"adapter": "none"}),
    ],
)
def test_the_whole_without_a_part_differs_from_it_in_that_part_alone(part: str, changed: dict) -> None:
    whole = read(CONFIGS / "ablations" / "kanoclip.yaml")
    ablation = read(CONFIGS / "ablations" / f"kanoclip_no_{part}.yaml")
    whole["model"]["init_args"] |= changed
    assert ablation["model"].pop("class_path") == f"kanoclip_no_{part}"
    assert ablation["trainer"].pop("default_root_dir") == f"runs/ablations/kanoclip_no_{part}"
    del whole["trainer"]["default_root_dir"], whole["model"]["class_path"]
    assert ablation == whole


def test_ablations_do_not_share_a_run_folder() -> None:
    roots = [read(path)["trainer"]["default_root_dir"] for path in CONFIGS.glob("ablations/*.yaml")]
    assert len(set(roots)) == len(roots) == 52


def test_the_full_config_is_the_method_at_its_published_size() -> None:
    given = read(CONFIGS / "kanoclip.yaml")
    backbone = given["model"]["init_args"]["backbone"]
    assert backbone["class_path"] == "clip"
    assert (backbone["init_args"]["name"], backbone["init_args"]["pretrained"]) == ("ViT-L-14-336", "openai")
    assert backbone["init_args"]["image_size"] == 518
    assert given["data"]["class_path"] == "mvtec"


@pytest.mark.parametrize("model", [name for name in available("model") if name != "local_stats"])
def test_the_config_of_a_variant_or_rival_spells_out_its_own_defaults(model: str, tiny) -> None:
    module, _, cls = NAMES["model"][model].rpartition(".")
    defaults = getattr(import_module(module), cls)(backbone=tiny(model)).describe_components()
    said = classes(next(CONFIGS.glob(f"*/{model}.yaml")))
    assert {kind: said[kind].rpartition(".")[2] for kind in said if kind != "backbone"} == {
        kind: defaults[kind] for kind in said if kind != "backbone"
    }


def test_a_wrong_name_in_a_config_is_told_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: surfaces\nmodel: {class_path: kanoclip, init_args: {adapter: cnov}}\n")
    with pytest.raises(ValueError, match=r"Unknown adapter 'cnov' in .*mine\.yaml.*Did you mean 'conv'"):
        prepare(["fit", "--config", str(file)])


BENCHMARKS = sorted(CONFIGS.glob("benchmarks/*.yaml"))
SIZES = {  # fits if all sets are on disk, and rows
    "ablation": (7 * 3, 9),
    "ablation_full": (2 * 10 * 3, 12),
    "components": (48 * 3, 48),
    "mvtec_to_all": (2 * 3 * 3, 5),
    "quickstart": (1, 3),
    "rivals": (15 * 3, 18),
    "smoke": (1, 2),
    "visa_to_all": (2 * 3 * 3, 5),
}


@pytest.mark.parametrize("path", BENCHMARKS, ids=name)
def test_a_benchmark_config_is_accepted_and_plans_what_it_says(path: Path, tmp_path: Path) -> None:
    plan = read_plan(str(path), tmp_path)
    fits = [job for job in plan.jobs if job.learns is not False]
    assert (len(fits), len({job.label for job in plan.jobs})) == SIZES[path.stem]
    assert all(job.learns is not None for job in plan.jobs)


@pytest.mark.parametrize("path", BENCHMARKS, ids=name)
def test_the_models_of_a_benchmark_config_can_be_built(path: Path, tmp_path: Path, tiny) -> None:
    for job in read_plan(str(path), tmp_path).jobs:
        if job.seed == 111 and job.label != "local_stats" and "backbone" in job.model.get("init_args", {}):
            create(parse_spec("model", job.model, path.name), backbone=tiny(name_of("model", job.model["class_path"])))


@pytest.mark.parametrize(
    ("family", "auxiliary", "itself"), [("mvtec_to_all", "mvtec", "visa"), ("visa_to_all", "visa", "mvtec")]
)
def test_a_protocol_of_the_literature_tests_every_published_set_once_and_never_what_was_fitted(
    family: str, auxiliary: str, itself: str, tmp_path: Path
) -> None:
    plan = read_plan(str(CONFIGS / "benchmarks" / f"{family}.yaml"), tmp_path)
    assert plan.family == family
    pairs = [
        (job.auxiliary.name, one.name)
        for job in plan.jobs
        if job.label == "april_gan" and job.seed == 111
        for one in job.data
    ]
    assert len(pairs) == len(set(pairs))
    assert [pair for pair in pairs if pair[0] != auxiliary] == [(itself, auxiliary)]
    published_sets = {name for name in NAMES["data"] if issubclass(load_class(NAMES["data"][name]), Tree)}
    other_cuts = {"ksdd", "ksdd_adaclip"}  # of the images of ksdd_anomalyclip
    assert {tested for _, tested in pairs} == published_sets - other_cuts
    epochs = {job.auxiliary.name: job.trainer["max_epochs"] for job in plan.jobs if job.label == "april_gan"}
    assert epochs == {"mvtec": 3, "visa": 15}


def spelled_out(given: dict) -> dict:
    """A model with its own components where none is named, and every default."""
    spec = read_spec("model", given, "")
    cls = load_class(spec["class_path"])
    own = {kind: getattr(cls, f"own_{kind}", None) for kind in COMPONENTS}
    paths = {kind: f"{one.__module__}.{one.__name__}" for kind, one in own.items() if one}
    found = parse_spec("model", {**spec, "init_args": paths | spec["init_args"]}, "")
    if attention := found.init_args.get("attention"):
        attention["init_args.first"] = create(attention).start(24)  # null depends on the depth, here that of ViT-L
    return found.as_dict()


def test_the_full_config_is_the_model_without_any_options() -> None:
    without = spelled_out({"class_path": "kanoclip"})["init_args"]
    full = spelled_out(read(CONFIGS / "kanoclip.yaml")["model"])["init_args"]
    shapes = []
    for given in (without, full):
        interaction = create(dict_to_namespace(given.pop("interaction")))
        interaction.build(SimpleNamespace(levels=(6, 12, 18, 24), dim=768, levels_at="joint"))  # ViT-L
        shapes.append({name: weight.shape for name, weight in interaction.named_parameters()})
    assert shapes[0] == shapes[1]
    assert sum(shape.numel() for shape in shapes[0].values()) < 5e6  # 61 MB a checkpoint, with Adam's moments
    usual = {name: option.default for name, option in inspect.signature(CLIPBackbone).parameters.items()}
    assert usual["levels"] is None  # the four quarters of the depth
    assert full.pop("backbone")["init_args"] == usual | {"levels": [6, 12, 18, 24]}
    assert without.pop("backbone") is None
    assert (full.pop("image_knowledge"), without.pop("image_knowledge")) == ("auto", None)  # has to be made before
    assert without == full


@pytest.mark.parametrize("stem", ["mvtec_to_all", "visa_to_all", "ablation_full"])
def test_the_full_config_is_the_row_of_a_benchmark_at_full_size(stem: str) -> None:
    benchmark, single = read(CONFIGS / "benchmarks" / f"{stem}.yaml"), read(CONFIGS / "kanoclip.yaml")
    rows = {row.get("label", row["class_path"]): spelled_out(row) for row in benchmark["models"]}
    assert rows["kanoclip"] == spelled_out(single["model"])
    assert benchmark["trainer"] == single["trainer"]
    interaction = rows["kanoclip"]["init_args"]["interaction"]
    for row in rows.values():  # the ablations differ from it in nothing but their parts
        own = row["init_args"].get("interaction") or {}
        assert own == interaction or not own.get("class_path", "").endswith("BiCMCI")


@pytest.mark.parametrize("stem", ["mvtec_to_all", "visa_to_all", "ablation_full"])
def test_a_benchmark_at_full_size_has_the_published_settings(stem: str, tmp_path: Path) -> None:
    for job in read_plan(str(CONFIGS / "benchmarks" / f"{stem}.yaml"), tmp_path).jobs:
        backbone = job.model["init_args"]["backbone"]["init_args"]
        given = (backbone["name"], backbone["pretrained"], backbone["image_size"])
        winclip = ("ViT-B-16-plus-240", "laion400m_e31", 240)
        assert given == (winclip if job.label == "winclip" else ("ViT-L-14-336", "openai", 518))
        assert job.label == "april_gan" or job.trainer == {"max_epochs": 15}
        rival = CONFIGS / "rivals" / f"{job.label}.yaml"
        if rival.is_file():
            theirs = read(rival)["model"]["init_args"]["backbone"]["init_args"]
            assert backbone == {key: value for key, value in theirs.items() if (key, value) != ("position", "bicubic")}


def test_the_ablations_have_the_rows_of_the_study_and_every_registered_variant(tmp_path: Path) -> None:
    for stem in ("ablation", "ablation_full"):
        labels = list(
            dict.fromkeys(job.label for job in read_plan(str(CONFIGS / "benchmarks" / f"{stem}.yaml"), tmp_path).jobs)
        )
        assert tuple(labels[: len(LADDER)]) == LADDER
        without = {name for name in available("model") if name.startswith("kanoclip_no_")} - {"kanoclip_no_adapter"}
        known = (
            {f"knowledge: {what}" for what in ("general", "image", "shuffled")} if stem == "ablation_full" else set()
        )
        assert set(labels[len(LADDER) :]) == without | known  # the one without an adapter is the last rung


@pytest.mark.parametrize("stem", ["components", "ablation_full"])
def test_knowledge_has_its_rows_none_general_image_both_and_shuffled(stem: str) -> None:
    models = read(CONFIGS / "benchmarks" / f"{stem}.yaml")["models"]
    rows = {}
    for row in models:
        given = spelled_out(row)["init_args"]
        if row["class_path"] in ("kanoclip", "kanoclip_no_kd"):
            kd_loss = given.pop("kd_loss")["class_path"].rpartition(".")[2]
            what = kd_loss if kd_loss == "NoKD" else (given.pop("knowledge"), given.pop("image_knowledge"))
            rows[row.get("label", row["class_path"])] = what
    none, general, both = {
        "components": ("kd_loss: none", "kanoclip", "knowledge: both"),
        "ablation_full": ("kanoclip_no_kd", "knowledge: general", "kanoclip"),
    }[stem]
    assert rows[none] == "NoKD"
    assert rows[general] == ("auto", None)
    assert rows[both] == ("auto", "auto")
    assert rows["knowledge: image"] == ("none", "auto")
    assert rows["knowledge: shuffled"] == ("shuffled", "auto")


def test_the_components_are_compared_with_every_registered_alternative(tmp_path: Path) -> None:
    jobs = read_plan(str(CONFIGS / "benchmarks" / "components.yaml"), tmp_path).jobs
    own = {
        "attention": "vv",
        "prompts": "learned",
        "kd_loss": "mean_margin",
        "interaction": "bi_cmci",
        "adapter": "conv",
    }
    for kind in (*own, "score"):
        labels = {job.label.partition(": ")[2] for job in jobs if job.label.startswith(f"{kind}: ")}
        assert labels == set(available(kind)) - {own.get(kind, "mean")}
        for job in jobs:
            if job.label.startswith(f"{kind}: "):
                assert name_of(kind, job.model["init_args"][kind]) == job.label.partition(": ")[2]


def test_every_alternative_of_a_component_is_a_config_of_its_own() -> None:
    registered = {  # as variants of their own
        "attention_qkv": "kanoclip_no_vv",
        "prompts_ensemble": "kanoclip_no_knpl",
        "kd_loss_none": "kanoclip_no_kd",
        "interaction_none": "kanoclip_no_bicmci",
        "adapter_none": "kanoclip_no_adapter",
    }
    whole = read(CONFIGS / "ablations" / "kanoclip.yaml")["model"]["init_args"]
    rows = read(CONFIGS / "benchmarks" / "components.yaml")["models"]
    stems = {re.sub(r"\W+", "_", row["label"]): whole | row["init_args"] for row in rows}
    for stem, expected in stems.items():
        config = read(CONFIGS / "ablations" / f"{registered.get(stem, stem)}.yaml")
        assert config["model"]["init_args"] == expected, stem
        assert config["trainer"]["default_root_dir"] == f"runs/ablations/{registered.get(stem, stem)}"
    files = {path.stem for path in CONFIGS.glob("ablations/*.yaml")}
    assert files == {registered.get(stem, stem) for stem in stems} | set(LADDER)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("trainer/*.yaml")), ids=name)
def test_a_file_of_trainer_options_goes_with_any_config_and_what_is_typed_wins(path: Path) -> None:
    typed = ["--trainer.min_epochs", "2"]  # before the file
    with pytest.raises(Parsed) as stopped:
        ParseOnly(prepare(["fit", *typed, "--trainer", str(path), "--config", str(CONFIGS / "kanoclip.yaml")]))
    trainer = stopped.value.args[0].trainer
    assert {key: trainer.as_dict()[key] for key in read(path)} == read(path)
    assert (trainer.min_epochs, trainer.max_epochs) == (2, 15)
    option, value = ("precision", "32-true") if "precision" in read(path) else ("accelerator", "cpu")
    config = ["--trainer", str(path), "--config", str(CONFIGS / "kanoclip.yaml")]
    with pytest.raises(Parsed) as stopped:
        ParseOnly(prepare(["fit", f"--trainer.{option}", value, *config]))
    assert stopped.value.args[0].trainer[option] == value


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("trainer/*.yaml")), ids=name)
def test_a_file_of_trainer_options_names_itself_in_the_command_it_shows(path: Path) -> None:
    assert f"--trainer configs/trainer/{path.name}" in path.read_text(encoding="utf-8")
