import importlib
import subprocess
import sys

import pytest

from kanoclip.registry import (
    IMPORTED,
    MOVED,
    NAMES,
    UnknownNameError,
    available,
    expand,
    load_class,
    moved,
    name_of,
    register,
    summary,
)

CONV, MVTEC = "kanoclip.heads.adapter.ConvAdapter", "kanoclip.data.sets.mvtec.MVTecAD"


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in NAMES for name in NAMES[kind]])
def test_every_name_leads_to_a_documented_class_whose_summary_is_read_without_importing_it(kind, name) -> None:
    module, _, cls = NAMES[kind][name].rpartition(".")
    found = getattr(importlib.import_module(module), cls)
    assert summary(NAMES[kind][name]) == found.__doc__.split("\n")[0]
    assert name_of(kind, NAMES[kind][name]) == name
    if kind in ("model", "data"):
        assert found.name == name


def test_the_models_that_can_be_imported_are_those_that_read_published_weights() -> None:
    can = (name for name, path in NAMES["model"].items() if hasattr(load_class(path), "from_published"))
    assert tuple(can) == IMPORTED


def test_short_names_are_expanded_wherever_their_kind_is_the_key() -> None:
    config = {
        "data": "mvtec",
        "model": {"class_path": "kanoclip", "init_args": {"adapter": "conv", "backbone": {"class_path": "embedded"}}},
        "trainer": {"logger": {"data": "conv"}},
    }
    expanded = expand(config)
    assert expanded["data"] == MVTEC
    assert expanded["model"]["init_args"] == {
        "adapter": CONV,
        "backbone": {"class_path": "kanoclip.backbone.embedded.EmbeddedBackbone"},
    }
    assert expanded["trainer"] == config["trainer"]  # left alone


@pytest.mark.parametrize("value", ["my_lab.MyAdapter", "configs/data.yaml", '{"a": 1}', "MVTecAD", None, "null", 3])
def test_paths_classes_json_and_numbers_pass_through(value) -> None:
    assert expand({"data": value}) == {"data": value}


def test_an_unknown_name_says_what_was_meant_and_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown data 'mvtecc'\. Did you mean 'mvtec'\?") as error:
        expand({"data": "mvtecc"})
    assert "photos of your own: --data folder --data.root PATH. All names: kanoclip list data." in str(error.value)
    with pytest.raises(UnknownNameError, match=r"Unknown adapter .cnov. in my\.yaml"):
        expand({"model": {"adapter": "cnov"}}, " in my.yaml")


def test_a_class_of_ones_own_gets_a_name_once(monkeypatch) -> None:
    monkeypatch.setitem(NAMES, "score", dict(NAMES["score"]))

    @register("score", "mine")
    class Mine:
        """A score."""

    register("score", "mine")(Mine)  # importing a module twice does no harm
    assert "mine" in available("score")
    assert expand({"score": "mine"})["score"].endswith("Mine")
    with pytest.raises(ValueError, match=r"The score 'mean' is kanoclip\.heads\.scoring\.MeanScore already"):
        register("score", "mean")(Mine)
    with pytest.raises(ValueError, match="Unknown kind 'colour'"):
        register("colour", "red")


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["--help"], 0, "usage: kanoclip VERB"),
        (["--version"], 0, "kanoclip 0."),
        (["tset"], 2, "Did you mean 'test'?"),
        (["test", "--data", "mvtecc"], 2, "Did you mean 'mvtec'?"),
        (["fit", "--model.adapter=cnov"], 2, "Did you mean 'conv'?"),
        (["test", "--data.help"], 0, "surfaces_auxiliary"),
        (["fit", "--data", "surfaces", "--model.help"], 0, "--model.help NAME"),
        (["fit", "--model.adapter.help"], 0, "conv "),
        (["test"], 2, "test needs a data set: add --data NAME. For photos of your own: --data folder --data.root PATH"),
        (["fit", "--config", "nowhere.yaml"], 2, "No config at nowhere.yaml"),
        (["test", "--dta", "surfaces"], 2, "Did you mean --data?"),
        (["list"], 0, "bi_cmci"),
        (["list", "adaptor"], 2, "Kinds: data, model"),
    ],
)
def test_what_needs_no_torch_is_answered_without_importing_it(arguments, code, answer) -> None:
    program = (
        "import sys; from kanoclip.verbs.table import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'numpy'} & set(sys.modules); sys.exit(99 if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert answer in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ("kanoclip.prompts.LearnedPrompts", "kanoclip.heads.prompts.LearnedPrompts"),
        ("kanoclip.data.mvtec.MVTecAD", MVTEC),
        ("kanoclip.data.surfaces.Surfaces", "kanoclip.data.drawn.surfaces.Surfaces"),
        ("kanoclip.models.rivals.WinCLIP", "kanoclip.models.rivals.winclip.WinCLIP"),
        ("kanoclip.models.kanoclip.KAnoCLIP", "kanoclip.models.kanoclip.KAnoCLIP"),
        ("my_lab.scoring.Mine", "my_lab.scoring.Mine"),
    ],
)
def test_a_class_of_version_0_1_0_is_found_where_it_is_now(then, now) -> None:
    assert moved(then) == now
    assert expand({"adapter": then})["adapter"] == now


def test_every_class_that_had_a_name_in_version_0_1_0_is_still_there() -> None:
    for then in MOVED:
        module, _, name = moved(f"{then}.X").rpartition(".") if then.islower() else moved(then).rpartition(".")
        found = importlib.import_module(module)
        assert name == "X" or hasattr(found, name)
