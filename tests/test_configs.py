"""Every YAML that ships is parsed by the real parser and built, with a tiny backbone where it names a large one."""

from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace

from kanoclip.arguments import prepare
from kanoclip.cli import KanoclipCLI
from kanoclip.registry import NAMES, available, expand

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("ablations/*.yaml"), *CONFIGS.glob("rivals/*.yaml")])
LADDER = ("clip", "clip_vv", "clip_vv_knpl", "clip_vv_knpl_bicmci", "kanoclip")
COMPONENTS = ("backbone", "attention", "prompts", "interaction", "adapter", "score", "kd_loss")


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def kinds(path: Path) -> tuple[str, ...]:
    """The components of the model that a config names; WinCLIP learns nothing and has few."""
    return ("backbone", "prompts", "score") if path.stem == "winclip" else COMPONENTS


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
        ParseOnly(["fit", "--config", str(path)])
    return stopped.value.args[0]


def create(section: Namespace, **override: object) -> object:
    module, _, cls = section.class_path.rpartition(".")
    inside = {
        key: create(value) if isinstance(value, Namespace) and "class_path" in value else value
        for key, value in vars(section.get("init_args") or Namespace()).items()
        if key not in override
    }
    return getattr(import_module(module), cls)(**inside, **override)


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_config_is_accepted_and_builds_the_model_and_the_data_it_names(path: Path, tiny_clip) -> None:
    tree = parse(path)
    model = create(tree.model, backbone=tiny_clip)
    data = create(tree.data)
    assert model.name == read(path)["model"]["class_path"]
    assert data.name == read(path)["data"]["class_path"]
    built = model.describe_components()
    assert {k: built[k] for k in built if k != "backbone"} == {
        kind: cls.rpartition(".")[2] for kind, cls in classes(path).items() if kind != "backbone"
    }
    assert tree.seed_everything == 111


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_config_names_every_component(path: Path) -> None:
    given = read(path)["model"]["init_args"]
    assert [kind for kind in kinds(path) if given.get(kind) is None] == []


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_the_keys_of_a_config_follow_the_data(path: Path) -> None:
    assert list(read(path)) == ["seed_everything", "data", "model", "trainer"]


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_model_that_learns_says_for_how_long(path: Path, tiny_clip) -> None:
    learns = create(parse(path).model, backbone=tiny_clip).needs_training
    assert ("max_epochs" in read(path)["trainer"]) == learns


def test_each_rung_of_the_ladder_adds_to_the_one_below() -> None:
    rungs = [classes(CONFIGS / "ablations" / f"{rung}.yaml") for rung in LADDER]
    changes = [{k for k in COMPONENTS if below[k] != above[k]} for below, above in pairwise(rungs)]
    assert changes == [{"attention"}, {"prompts", "kd_loss"}, {"interaction"}, {"adapter"}]


@pytest.mark.parametrize("kind", ["adapter", "interaction", "kd_loss"])
def test_an_ablation_without_a_part_differs_from_the_whole_in_that_part_alone(kind: str) -> None:
    whole = read(CONFIGS / "ablations" / "kanoclip.yaml")
    ablation = read(CONFIGS / "ablations" / f"no_{kind.removesuffix('_loss')}.yaml")
    assert ablation["model"]["init_args"].pop(kind) == "none"
    del whole["model"]["init_args"][kind]
    del whole["trainer"]["default_root_dir"], ablation["trainer"]["default_root_dir"]
    assert ablation == whole


def test_ablations_do_not_share_a_run_folder() -> None:
    roots = [read(path)["trainer"]["default_root_dir"] for path in CONFIGS.glob("ablations/*.yaml")]
    assert len(set(roots)) == len(roots) == 8


def test_the_full_config_is_the_method_at_its_published_size() -> None:
    given = read(CONFIGS / "kanoclip.yaml")
    backbone = given["model"]["init_args"]["backbone"]
    assert backbone["class_path"] == "clip"
    assert (backbone["init_args"]["name"], backbone["init_args"]["pretrained"]) == ("ViT-L-14-336", "openai")
    assert backbone["init_args"]["image_size"] == 518
    assert given["data"]["class_path"] == "mvtec"


@pytest.mark.parametrize("model", [name for name in available("model") if name != "local_stats"])
def test_the_config_of_a_variant_or_rival_spells_out_its_own_defaults(model: str, tiny_clip) -> None:
    module, _, cls = NAMES["model"][model].rpartition(".")
    defaults = getattr(import_module(module), cls)(backbone=tiny_clip).describe_components()
    said = classes(next(CONFIGS.glob(f"*/{model}.yaml")))
    assert {kind: said[kind].rpartition(".")[2] for kind in said if kind != "backbone"} == {
        kind: defaults[kind] for kind in said if kind != "backbone"
    }


def test_a_wrong_name_in_a_config_is_told_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: surfaces\nmodel: {class_path: kanoclip, init_args: {adapter: cnov}}\n")
    with pytest.raises(ValueError, match=r"Unknown adapter 'cnov' in .*mine\.yaml.*Did you mean 'conv'"):
        prepare(["fit", "--config", str(file)])
