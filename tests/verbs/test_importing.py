"""``kanoclip import`` from the authors' file to a checkpoint that ``test`` accepts, and mistakes in one line."""

import json
import sys
from pathlib import Path

import pytest
import torch
from golden_clip import batch_of, golden_backbone
from safetensors.torch import load_file
from torch import nn

from kanoclip.models.checkpoint import read_checkpoint
from kanoclip.models.rivals.april_gan import AprilGAN
from kanoclip.verbs.table import main

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "april_gan.safetensors")
LAYERS = {key[10:]: value for key, value in GOLDEN.items() if key.startswith("published.")}
DATA = ["--data", "surfaces", "--data.images", "2", "--data.num_workers", "0", "--data.category", "pill"]


class Adaptor(nn.Linear):
    """A class of the authors'."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def imported(tmp_path):
    """The command that imports a published file for the tiny backbone of the golden one, and the backbone's name."""
    golden_backbone(tmp_path / "clip", GOLDEN, heads=2, text_heads=2, quick_gelu=True)
    torch.save({"trainable_linearlayer": LAYERS}, "mvtec_pretrained.pth")
    name = f"local-dir:{tmp_path / 'clip'}"
    command = [
        "import",
        "--from",
        "april_gan",
        "mvtec_pretrained.pth",
        "--fitted_on",
        "mvtec",
        "--output",
        "heads.ckpt",
    ]
    return [*command, "--model.backbone.name", name, "--model.backbone.image_size", "48"], name


def test_a_published_file_becomes_a_checkpoint_that_test_accepts(imported, capsys) -> None:
    command, name = imported
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "heads.ckpt: april_gan, 2,112 weights imported from mvtec_pretrained.pth (sha256 " in said
    assert "Nobody has run the published rows with it yet" in said
    assert "Next: kanoclip test --ckpt_path heads.ckpt --data visa" in said
    entry, model = read_checkpoint("heads.ckpt")
    assert (entry["auxiliary"], entry["images"], set(entry["imported"])) == ("mvtec", None, {"mvtec_pretrained.pth"})
    assert model["init_args"]["enlarge"] == "logits"

    assert main(["test", "--ckpt_path", "heads.ckpt", "--model.backbone.name", name, *DATA, "--output", "out"]) == 0
    told = capsys.readouterr()
    assert "checkpoint heads.ckpt: april_gan, fitted on mvtec by its authors and imported." in told.err
    results = json.loads(Path("out/results.json").read_text())
    assert (results["auxiliary"], results["zero_shot"]) == ("mvtec", None)


@torch.no_grad()
def test_an_imported_checkpoint_scores_as_the_authors_code(imported, tmp_path) -> None:
    assert main(imported[0]) == 0
    given = {"activation": "gelu", "levels_at": "block"}
    backbone = golden_backbone(tmp_path / "again", GOLDEN, heads=2, text_heads=2, quick_gelu=True, **given)
    scores = AprilGAN.load_from_checkpoint("heads.ckpt", backbone=backbone).eval()(batch_of(GOLDEN))
    torch.testing.assert_close(4 * scores.anomaly_map, GOLDEN["map"], rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.image_score, GOLDEN["score"], rtol=0, atol=1e-4)


def test_what_is_pickled_code_is_refused_and_never_run(tmp_path, capsys) -> None:
    torch.save(Adaptor(2, 2), "adaptor.pt")
    assert main(["import", "--from", "april_gan", "adaptor.pt", "--fitted_on", "mvtec"]) == 2
    said = capsys.readouterr().err
    assert "adaptor.pt holds pickled Python code (" in said
    assert "Adaptor), not tensors alone" in said
    code = said[said.index("python -c '") + 11 :].partition("'\n")[0].replace("'\"'\"'", "'")
    sys.modules[Adaptor.__module__] = sys.modules[__name__]
    exec(code)  # the line that re-saves it, in the authors' environment
    assert set(torch.load("adaptor_tensors.pt", weights_only=True)) == {"weight", "bias"}


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("harm"),)


def test_a_file_that_calls_something_calls_nothing(capsys) -> None:
    torch.save({"trainable_linearlayer": Evil()}, "evil.pth")
    assert main(["import", "--from", "april_gan", "evil.pth", "--fitted_on", "mvtec"]) == 2
    assert "evil.pth holds pickled Python code" in capsys.readouterr().err
    assert not Path("harm").exists()


def test_the_backbone_must_be_there_and_the_message_says_why(monkeypatch, capsys) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.save({"trainable_linearlayer": LAYERS}, "mvtec_pretrained.pth")
    assert main(["import", "--from", "april_gan", "mvtec_pretrained.pth", "--fitted_on", "mvtec"]) == 2
    said = capsys.readouterr().err
    assert "A checkpoint carries the fingerprint of the backbone that its heads belong to" in said
    assert "ViT-L-14-336 openai are not on this machine" in said
    assert said.count("\n") == 1


def test_weights_that_do_not_fit_the_backbone_are_refused_by_name(imported, capsys) -> None:
    assert main([*imported[0], "--model.backbone.levels", "[6, 12]"]) == 2
    said = capsys.readouterr().err
    assert "pretrained.pth does not fit the model: interaction.layers.2.weight is (16, 32) in it, expected noth" in said
    assert "Give the file as its authors publish it, and options of --model.backbone as they had them; here" in said
    assert "--ckpt_path" not in said
    assert said.count("\n") == 1
    assert not Path("heads.ckpt").exists()


FILE = ["--from", "april_gan", "a.pth", "--fitted_on", "mvtec"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (FILE, "No weights at a.pth: expected a file of its authors, or a folder with files of .pth"),
        (FILE[:3], "import needs --fitted_on: the data set that its authors fitted them on"),
        (FILE[2:], "import needs --from: the method whose weights they are"),
        ([*FILE[:2], *FILE[3:]], "no file given: import takes one file or folder"),
        ([*FILE, "b.pth"], "2 paths given: import takes one file or folder"),
        (["--from", "april_gam", *FILE[2:]], "Unknown model 'april_gam' for --from. Did you mean 'april_gan'?"),
        (
            ["--from", "winclip", *FILE[2:]],
            "--from winclip: no weights of it are known. There are those of april_gan, a",
        ),
        ([*FILE, "--outptu", "x"], "import has no option --outptu. Did you mean '--output'?"),
        ([*FILE, "--output"], "--output needs a value"),
        (["--from", "april_gan", "text.pth", *FILE[3:]], "text.pth is damaged, or no file of torch.save ("),
        (["--from", "april_gan", "none", *FILE[3:]], "No weights at none: expected a file"),
        (["--from", "april_gan", "two", *FILE[3:]], "There are 2 files, expected one, such as mvtec_pretrained.pth"),
    ],
)
def test_a_mistake_is_told_in_one_line(typed, said, capsys) -> None:
    Path("text.pth").write_text("version https://git-lfs.github.com/spec/v1")
    for name in ("none", "two"):
        Path(name).mkdir()
    for name in ("a.pth", "b.pth"):
        torch.save({}, Path("two") / name)
    assert main(["import", *typed]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_help_names_the_methods(capsys) -> None:
    assert main(["import", "--help"]) == 0
    assert "Methods: april_gan, anomalyclip" in capsys.readouterr().out
