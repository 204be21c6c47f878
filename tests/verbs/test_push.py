"""A fit that is shared gives the same numbers elsewhere, and a stranger's runs, fetches and overwrites nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file

from kanoclip import Inspector
from kanoclip.data.files import sha256
from kanoclip.outputs import hub
from kanoclip.outputs.hub import CONFIG, HEADS, THRESHOLD, fetch
from kanoclip.verbs.table import main

SMALL = ["--data.images", "2", "--data.num_workers", "0", "--data.category"]
EMBEDDED = ["--model.backbone", "embedded", "--model.backbone.image_size", "64"]
TEST = ["test", "--data", "surfaces", *SMALL, "gear", "--report", "false", "--overlays", "false"]
CKPT = "runs/fit/kanoclip/surfaces_auxiliary/version_0/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with a small fit, its test, its threshold and what a push has made of them."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KANOCLIP_CACHE", f"{folder}/cache")
        fit = ["fit", "--data", "surfaces_auxiliary", *SMALL, "wood", *EMBEDDED, "--model.lr", "0.01"]
        assert main([*fit, "--trainer.max_epochs", "1"]) == 0
        assert main([*TEST, "--ckpt_path", CKPT, "--output", "tested"]) == 0
        good = ["--data", "surfaces", "--data.images", "12", "--data.num_workers", "0", "--data.category", "gear"]
        assert main(["calibrate", *good, "--ckpt_path", CKPT, "--max_fpr", "0.4", "--output", "limit"]) == 0
        more = ["--threshold", "limit/threshold.json", "--results", "tested/results.json", "--license", "mit"]
        assert main(["push", CKPT, "file:shared", *more]) == 0
    return folder


@pytest.fixture
def place(fitted, tmp_path, monkeypatch):
    """Run in the fit's folder with a cache of one's own."""
    monkeypatch.chdir(fitted)
    monkeypatch.setenv("KANOCLIP_CACHE", f"{tmp_path}/cache")
    return tmp_path


@pytest.fixture
def copy(place):
    """A copy of the shared fit, and how to change what its config says."""
    folder = place / "copy"
    folder.mkdir()
    for file in Path("shared").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())

    def change(*keys, to) -> str:
        content = json.loads((folder / CONFIG).read_text())
        inside = content
        for key in keys[:-1]:
            inside = inside[key]
        inside[keys[-1]] = to
        (folder / CONFIG).write_text(json.dumps(content))
        return f"file:{folder}"

    return change


def refused(argv, capsys) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one]
    return line


def test_a_shared_fit_gives_the_numbers_of_its_checkpoint_to_the_last_digit(place, capsys) -> None:
    assert main([*TEST, "--ckpt_path", "file:shared", "--output", f"{place}/again"]) == 0
    said = capsys.readouterr().err
    assert "kanoclip, fitted on surfaces_auxiliary" in said
    first, again = (json.loads(Path(f, "results.json").read_text()) for f in ("tested", place / "again"))
    assert again["results"] == first["results"]
    assert (again["zero_shot"], again["seed"], again["components"]) == (True, first["seed"], first["components"])
    assert [
        line.split(",")[:5] for line in (place / "again/images.csv").read_text().splitlines()
    ] == [line.split(",")[:5] for line in Path("tested/images.csv").read_text().splitlines()]  # fmt: skip
    limit = said.split("to use it: --threshold ")[1].split()[0]
    assert main([*TEST, "--ckpt_path", "file:shared", "--output", f"{place}/third", "--threshold", limit]) == 0
    assert main(["predict", "--data", "surfaces", *SMALL, "gear", "--ckpt_path", "file:shared"]) == 0


def test_a_row_of_a_benchmark_may_be_a_shared_fit(place, capsys) -> None:
    small = {"images": 2, "num_workers": 0, "category": "gear"}
    model = {"class_path": "kanoclip", "checkpoint": "file:shared",
             "init_args": {"backbone": {"class_path": "embedded", "init_args": {"image_size": 64}}}}  # fmt: skip
    content = {"auxiliary": "surfaces_auxiliary", "data": [{"class_path": "surfaces", "init_args": small}]}
    (place / "b.yaml").write_text(yaml.safe_dump({**content, "models": [model]}))
    argv = ["benchmark", "--config", f"{place}/b.yaml", "--output", f"{place}/out", "--processes", "1"]
    assert main(argv) == 0
    (test,) = json.loads((place / "out/results.json").read_text())["tests"]
    assert test["report"]["results"] == json.loads(Path("tested/results.json").read_text())["results"]
    (place / "b.yaml").write_text(yaml.safe_dump({**content, "models": [{**model, "checkpoint": "file:nowhere"}]}))
    assert "file:nowhere is no fit of kanoclip" in refused(argv, capsys)


def test_an_inspector_scores_as_that_of_the_checkpoint_and_takes_the_threshold(place) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
    own, shared = Inspector(CKPT, threshold="limit/threshold.json"), Inspector.from_hub("file:shared")
    one, other = own(photo, "gear"), shared(photo, "gear")
    assert one.score == other.score
    assert np.array_equal(one.anomaly_map, other.anomaly_map)
    assert one.decision == other.decision is not None
    assert Inspector.from_hub("file:shared", threshold=None)(photo).decision is None


def test_what_was_fitted_is_known_after_the_trip(place, capsys) -> None:
    seen = ["test", "--data", "surfaces_auxiliary", *SMALL, "wood", "--report", "false", "--overlays", "false"]
    assert main([*seen, "--ckpt_path", "file:shared", "--output", f"{place}/seen"]) == 0
    assert "this is NOT zero-shot: it was fitted on images that are tested" in capsys.readouterr().err
    assert json.loads((place / "seen/results.json").read_text())["zero_shot"] is False


def test_the_files_are_data_alone_and_the_card_says_what_is_known(place) -> None:
    assert sorted(one.name for one in Path("shared").iterdir()) == [
        "README.md",
        HEADS,
        CONFIG,
        THRESHOLD,
    ]
    content = json.loads(Path("shared", CONFIG).read_text())
    assert set(content) == {"format", "kanoclip", "lightning", "model"}
    kept = torch.load(CKPT, weights_only=True)
    weights = load_file(Path("shared", HEADS))
    assert set(weights) - {"fitted_images"} == set(kept["state_dict"])
    assert torch.equal(weights["fitted_images"], kept["kanoclip"]["images"])
    _, head, card = Path("shared/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "kanoclip",
        "tags": ["anomaly-detection", "zero-shot", "kanoclip"],
        "license": "mit",
    }
    mean = json.loads(Path("tested/results.json").read_text())["results"]["mean"]
    for told in (kept["kanoclip"]["backbone"]["fingerprint"], "surfaces_auxiliary (wood)", "| seed | 111 |",
                 f"| surfaces | yes | 2 | {mean['image_auroc']:.3f} |"):  # fmt: skip
        assert told in card
    assert main(["push", CKPT, f"file:{place}/bare"]) == 0
    bare = (place / "bare/README.md").read_text()
    assert "None were given" in bare
    assert "license:" not in bare


def test_a_second_push_into_a_folder_replaces_the_first_with_its_threshold(place, copy, capsys) -> None:
    copy("format", to=1)
    assert main(["push", CKPT, f"file:{place}/copy"]) == 0
    assert not (place / "copy" / THRESHOLD).exists()
    (place / "other").mkdir()
    (place / "other/thesis.tex").touch()
    assert "other has other files. Choose a folder" in refused(["push", CKPT, f"file:{place}/other"], capsys)


def test_a_second_push_keeps_the_licence_and_what_was_added_to_the_card(place, capsys) -> None:
    folder, card = f"file:{place}/mine", place / "mine/README.md"
    assert main(["push", CKPT, folder]) == 0
    assert "no licence is named" in capsys.readouterr().out
    head, text = card.read_text().split("library_name: kanoclip\n")
    text = text.replace("---\n", "license: mit\nlanguage: de\n---\n\nAbove: für Äpfel.\n\n", 1)
    card.write_text(f"{head}library_name: kanoclip\n{text}\nBelow: ask me.\n")
    for more, licence in (([], "mit"), (["--results", "tested/results.json", "--license", "apache-2.0"], "apache-2.0")):
        assert main(["push", CKPT, folder, *more]) == 0
        assert "no licence is named" not in capsys.readouterr().out
        _, said, text = card.read_text().split("---\n", 2)
        assert yaml.safe_load(said)["license"] == licence
        assert yaml.safe_load(said)["language"] == "de"
        assert text.startswith("\nAbove: für Äpfel.\n\n<!-- kanoclip push writes from here")
        assert text.endswith("<!-- end of kanoclip push -->\n\nBelow: ask me.\n")
        assert text.count("# kanoclip, fitted on") == 1
    assert "| surfaces | yes | 2 |" in text
    card.write_text("All mine.\n")
    assert main(["push", CKPT, folder]) == 0
    assert card.read_text().endswith("<!-- end of kanoclip push -->\n\nAll mine.\n")


@pytest.mark.parametrize("content", ['{"name": "canoe"}', '{"format": 1}', "[1]", "no JSON"])
def test_the_config_of_another_tool_makes_no_folder_ours(place, capsys, content) -> None:
    (place / "other").mkdir()
    (place / "other" / CONFIG).write_text(content)
    assert "other has other files. Choose a folder" in refused(["push", CKPT, f"file:{place}/other"], capsys)
    assert [one.name for one in (place / "other").iterdir()] == [CONFIG]


def test_the_same_heads_make_the_same_checkpoint(place) -> None:
    first = sha256(fetch("file:shared").checkpoint)
    assert sha256(fetch("file:shared").checkpoint) == first


@pytest.mark.parametrize("verb", ["test", "predict"])
@pytest.mark.parametrize(
    ("keys", "to", "said"),
    [
        (("model", "class_path"), "evilmod.X", "names the class evilmod.X"),
        (("model", "init_args", "adapter"), {"class_path": "evilmod.X"}, "--model.adapter evilmod.X"),
        (
            ("model", "init_args", "backbone"),
            {"class_path": "kanoclip.backbone.clip.CLIPBackbone", "init_args": {"name": "hf-hub:a/b"}},
            "names the model hf-hub:a/b",
        ),
    ],
)
def test_what_a_shared_config_names_is_neither_imported_nor_fetched(
    copy, place, monkeypatch, capsys, verb, keys, to, said
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    Path("evilmod.py").write_text("from pathlib import Path; Path('ran').touch()\nclass X: pass")
    source = copy(*keys, to=to)
    assert said in refused([verb, "--data", "surfaces", "--ckpt_path", source], capsys)
    with pytest.raises(hub.CheckpointError, match="nothing that a checkpoint names is imported"):
        Inspector.from_hub(source)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("keys", "to", "said"),
    [
        (("format",), 2, "has format 2 of shared fits, and kanoclip"),
        (("format",), "1", "kanoclip.json lacks format, kanoclip or model"),
        (("kanoclip",), [], "kanoclip.json lacks format, kanoclip or model"),
        (("model",), "x", "kanoclip.json lacks format, kanoclip or model"),
        (("model", "class_path"), 3, "kanoclip.json lacks format, kanoclip or model"),
        (("lightning",), None, "pytorch-lightning_version is missing or not what it should be"),
        (("kanoclip", "backbone"), "x", "kanoclip.backbone is missing or not what it should be"),
        (("kanoclip", "model"), "winclip", "The checkpoint was fitted with model winclip"),
    ],
)
def test_a_damaged_config_is_told_in_one_line(copy, capsys, keys, to, said) -> None:
    assert said in refused([*TEST, "--ckpt_path", copy(*keys, to=to)], capsys)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (CONFIG, b"[" * 100_000, "is not JSON (brackets are nested too deep)"),
        (CONFIG, b"\xff\x00", "is not JSON"),
        (CONFIG, None, "it has no kanoclip.json. Make one with kanoclip push"),
        (HEADS, b"\x80\x04K\x01.", "heads.safetensors is no safetensors"),
        (HEADS, (2**60).to_bytes(8, "little") + b"{}", "heads.safetensors is no safetensors"),
        (THRESHOLD, b"{}", "is not a threshold.json"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(copy, place, capsys, name, content, said) -> None:
    source = copy("format", to=1)
    (place / "copy" / name).unlink() if content is None else (place / "copy" / name).write_bytes(content)
    assert said in refused([*TEST, "--ckpt_path", source], capsys)


def test_heads_of_another_model_a_foreign_threshold_and_a_huge_file_are_refused(
    copy, place, monkeypatch, capsys
) -> None:
    source = copy("format", to=1)
    weights = load_file(place / "copy" / HEADS)
    save_file({**weights, "extra": torch.zeros(1)}, place / "copy" / HEADS)
    assert "threshold.json is not of its heads.safetensors" in refused([*TEST, "--ckpt_path", source], capsys)
    (place / "copy" / THRESHOLD).unlink()
    assert "extra is (1,) in it, expected nothing" in refused([*TEST, "--ckpt_path", source], capsys)
    monkeypatch.setitem(hub.LARGEST, HEADS, 10)
    assert "and up to 10 are read" in refused([*TEST, "--ckpt_path", source], capsys)


@pytest.mark.parametrize(
    "name", ["hub:", "hub:a", "hub:../x", "hub:a/../b", "hub:a/b/c", "hub:a/b@../../x", "hub:a/b@", "hub:/a/b", "file:"]
)
def test_a_name_that_is_none_is_told(place, capsys, name) -> None:
    for argv in ([*TEST, "--ckpt_path", name], ["push", CKPT, name]):
        assert "expected hub:OWNER/NAME, hub:OWNER/NAME@REVISION, or file:FOLDER" in refused(argv, capsys)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["push"], "push needs the checkpoint of a fit and where to"),
        (["push", CKPT, "file:x", "--licence", "mit"], "push has no option --licence"),
        (["push", "none.ckpt", "file:x"], "No checkpoint at none.ckpt"),
        (["push", CKPT, "hub:a/b@v1"], "a push makes a new commit, so leave out @v1"),
        (["push", CKPT, "file:x", "--threshold", "0.5"], "--threshold 0.5 is not of runs/fit"),
        (["push", CKPT, "file:x", "--results", "none.json"], "--results none.json: there is no such file"),
        (["push", CKPT, "file:x", "--results", "limit/threshold.json"], "is no results.json of a test"),
        (["fit", "--data", "surfaces_auxiliary", "--ckpt_path", "file:shared"], "a fit cannot go on with a shared one"),
        ([*TEST, "--ckpt_path", "file:nowhere"], "file:nowhere is no fit of kanoclip: it has no heads.safetensors"),
    ],
)
def test_a_mistake_is_told_with_what_to_type(place, capsys, argv, said) -> None:
    assert said in refused(argv, capsys)
    assert not Path("x").exists()


def test_a_place_that_cannot_be_is_told_without_options_that_push_lacks(place, capsys) -> None:
    (place / "file").write_text("x")
    for folder, why in ((place / "file", "Not a directory"), (place / ("a" * 300), "File name too long")):
        line = refused(["push", CKPT, f"file:{folder}"], capsys)
        assert line.endswith(f"heads.safetensors: {why}. Choose another place with file:FOLDER.")
    assert "is no fit of kanoclip" in refused([*TEST, "--ckpt_path", f"file:{'a' * 300}"], capsys)


def test_what_a_stranger_says_of_a_fit_does_not_steer_the_terminal(copy, place, capsys) -> None:
    source = copy("kanoclip", "auxiliary", to="\x1b[31mevil\u202e")
    capsys.readouterr()
    assert main([*TEST, "--ckpt_path", source, "--output", f"{place}/steered"]) == 0
    said = "".join(capsys.readouterr())
    assert "\\x1b[31mevil" in said
    assert "\x1b[31mevil" not in said
    assert "\u202e" not in said


def test_numbers_of_another_checkpoint_are_refused(place, capsys) -> None:
    report = json.loads(Path("tested/results.json").read_text())
    report["checkpoint"]["sha256"] = "0"
    (place / "results.json").write_text(json.dumps(report))
    argv = ["push", CKPT, "file:x", "--results", f"{place}/results.json"]
    assert "is not of runs/fit" in refused(argv, capsys)


@pytest.fixture
def api(monkeypatch):
    """The client of the hub as it is asked, with what was uploaded."""
    asked: dict = {}

    def create_repo(self, repo_id, **options):
        asked["made"] = (repo_id, options)
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, **options):
        files = {one.name: one.read_bytes() for one in Path(folder_path).iterdir()}
        asked["uploaded"] = (repo_id, files, options)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "list_repo_files", lambda self, repo_id: asked.get("there", [".gitattributes"]))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return asked


def test_a_push_to_the_hub_makes_the_repository_and_uploads_the_files(place, api, capsys) -> None:
    assert main(["push", CKPT, "hub:me/mine", "--private"]) == 0
    assert api["made"] == ("me/mine", {"private": True, "exist_ok": True})
    repository, files, options = api["uploaded"]
    assert (repository, set(files)) == ("me/mine", {HEADS, CONFIG, "README.md"})
    assert options["delete_patterns"] == [THRESHOLD]  # of an earlier push
    assert b"hub:me/mine" in files["README.md"]
    assert "https://huggingface.co/me/mine: kanoclip, " in capsys.readouterr().out


def test_a_repository_with_files_of_others_is_left_as_it_is(place, api, monkeypatch, capsys) -> None:
    api["there"] = [".gitattributes", "README.md"]
    assert "hub:me/mine has other files. Choose a repository that" in refused(["push", CKPT, "hub:me/mine"], capsys)
    assert "uploaded" not in api
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **_options: str(place / "there"))
    (place / "there").mkdir()
    (place / "there" / CONFIG).write_text('{"name": "canoe"}')
    api["there"] = [".gitattributes", "README.md", CONFIG, HEADS]
    assert "hub:me/mine has other files" in refused(["push", CKPT, "hub:me/mine"], capsys)
    assert "uploaded" not in api


def test_a_second_push_to_the_hub_keeps_what_was_added_to_the_card(place, copy, api, monkeypatch, capsys) -> None:
    asked: list = []
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **options: asked.append(options) or str(place / "copy"))
    with open(place / "copy/README.md", "a") as file:
        file.write("\nAsk me.\n")
    api["there"] = [".gitattributes", "README.md", CONFIG, HEADS]
    assert main(["push", CKPT, "hub:me/mine"]) == 0
    card = api["uploaded"][1]["README.md"].decode()
    assert "license: mit" in card
    assert "hub:me/mine" in card
    assert card.endswith("\n\nAsk me.\n")
    assert asked == [{"revision": None, "allow_patterns": [CONFIG, "README.md"]}]
    assert "no licence is named" not in capsys.readouterr().out


def test_a_repository_is_fetched_at_its_revision_and_no_more_than_is_read(place, monkeypatch) -> None:
    asked = []

    def snapshot_download(repo_id, **options):
        asked.append((repo_id, options))
        return str(Path("shared").absolute())

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert main([*TEST, "--ckpt_path", "hub:me/mine@v1.0", "--output", f"{place}/hub"]) == 0
    assert Inspector.from_hub("me/mine").scoring == Inspector.from_hub("file:shared").scoring
    wanted = [HEADS, CONFIG, THRESHOLD]
    assert asked == [("me/mine", {"revision": one, "allow_patterns": wanted}) for one in ("v1.0", None)]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RepositoryNotFoundError.__new__(RepositoryNotFoundError), "there is no such repository, or it is private"),
        (RevisionNotFoundError.__new__(RevisionNotFoundError), "me/mine has no branch, tag or commit v1"),
        (LocalEntryNotFoundError("no network"), "cannot be fetched (no network). Check the network; or fetch it where"),
    ],
)
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(place, monkeypatch, capsys, error, said) -> None:
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert said in refused([*TEST, "--ckpt_path", "hub:me/mine@v1"], capsys)


def test_without_a_network_one_line_says_what_to_do(place, capsys) -> None:
    line = refused(["push", CKPT, "hub:me/mine"], capsys)  # the tests refuse connections
    assert "hub:me/mine cannot be written (" in line
    assert "hf auth login" in line
    assert "hub:me/mine cannot be fetched (" in refused([*TEST, "--ckpt_path", "hub:me/mine"], capsys)
