"""A benchmark's config: what it asks for, what is on disk, and every mistake told before anything runs."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from kanoclip.verbs.benchmark_verb import main
from kanoclip.verbs.plan import Plan, read_plan

SMALL = {"images": 2, "category": "gear"}
CONTENT = {
    "auxiliary": {"class_path": "surfaces_auxiliary", "init_args": {"images": 2}},
    "data": [{"class_path": "surfaces", "init_args": SMALL}],
    "models": ["local_stats", "kanoclip"],
    "seeds": [1, 2],
    "trainer": {"max_epochs": 1},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(**changes) -> str:
    content = {key: value for key, value in (CONTENT | changes).items() if value is not None}
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    return "mine.yaml"


def plan(root: str | None = None, family: str | None = None, **changes) -> Plan:
    return read_plan(write(**changes), Path("out"), root, family)


def jobs(**changes) -> list[tuple[str, str, int, list[str]]]:
    return [(job.label, job.auxiliary.label, job.seed, [one.label for one in job.data]) for job in plan(**changes).jobs]


def test_every_model_comes_with_its_first_seed_before_any_with_its_second() -> None:
    found = [(job.name, job.learns, job.seed) for job in plan().jobs]
    assert found == [("local_stats", False, 1), ("kanoclip, seed 1", True, 1), ("kanoclip, seed 2", True, 2)]


def test_a_protocol_takes_from_beside_it_what_it_does_not_say() -> None:
    others = [{"class_path": "surfaces", "init_args": SMALL}, {"class_path": "surfaces_defects", "init_args": SMALL}]
    protocols = [
        {"data": others},
        {"auxiliary": "surfaces", "data": ["surfaces_auxiliary"], "models": ["april_gan"], "seeds": [7]},
    ]
    assert jobs(protocols=protocols, data=None, models=["kanoclip"]) == [
        ("kanoclip", "surfaces_auxiliary images=2", 1, ["surfaces category=gear images=2", "surfaces_defects"]),
        ("april_gan", "surfaces", 7, ["surfaces_auxiliary"]),
        ("kanoclip", "surfaces_auxiliary images=2", 2, ["surfaces category=gear images=2", "surfaces_defects"]),
    ]


def test_what_learns_nothing_is_one_job_for_all_protocols() -> None:
    protocols = [{}, {"auxiliary": "surfaces_defects", "data": ["surfaces_auxiliary", CONTENT["data"][0]]}]
    found = [(job.name, [one.name for one in job.data]) for job in plan(protocols=protocols, seeds=[1]).jobs]
    assert found == [
        ("local_stats", ["surfaces", "surfaces_auxiliary"]),
        ("kanoclip on surfaces_auxiliary images=2", ["surfaces"]),
        ("kanoclip on surfaces_defects", ["surfaces_auxiliary", "surfaces"]),
    ]


def test_fits_are_told_apart_by_auxiliary_set_and_trainer() -> None:
    small = {"class_path": "surfaces_auxiliary", "init_args": {"images": 4}}
    protocols = [{}, {"trainer": {"max_epochs": 4, "precision": "32-true"}}, {"auxiliary": small}]
    learned = [job for job in plan(protocols=protocols, seeds=[1]).jobs if job.learns]
    assert [job.fitted_on for job in learned] == [
        "surfaces_auxiliary images=2 max_epochs=1",
        "surfaces_auxiliary images=2 max_epochs=4 precision=32-true",
        "surfaces_auxiliary images=4 max_epochs=1",
    ]
    assert [job.name for job in learned] == [f"kanoclip on {job.fitted_on}" for job in learned]
    assert {job.fitted_on for job in plan().jobs} == {"surfaces_auxiliary"}


def test_a_simple_config_is_one_protocol() -> None:
    beside = {key: value for key, value in CONTENT.items() if key not in ("auxiliary", "data")}
    inside = {key: CONTENT[key] for key in ("auxiliary", "data")}
    assert plan().jobs == plan(**dict.fromkeys(CONTENT), protocols=[inside | beside]).jobs


def test_rows_of_one_name_are_told_apart_by_the_options_in_which_they_differ() -> None:
    def model(**options: object) -> dict:
        return {"class_path": "kanoclip", "init_args": {"backbone": "embedded", **options}}

    found = jobs(
        seeds=[1],
        models=[
            model(),
            model(adapter="linear"),
            model(adapter={"class_path": "conv", "init_args": {"reduction": 2}}, lr=0.1),
            model(lr=0.1) | {"label": "fast"},
            "clip",
        ],
    )
    assert [label for label, *_ in found] == [
        "kanoclip",
        "kanoclip adapter=linear",
        "kanoclip adapter=conv adapter.reduction=2 lr=0.1",
        "fast",
        "clip",
    ]
    assert len({job.folder for job in plan().jobs}) == 3


def test_a_fit_is_known_by_its_settings_and_not_by_where_the_data_are() -> None:
    def folders(**changes) -> set[Path]:
        return {job.folder for job in plan(**changes).jobs if job.learns}

    assert folders() == folders(root="elsewhere")
    assert folders() == folders(data=["surfaces_defects"])
    assert not folders() & folders(trainer={"max_epochs": 2})
    assert not folders() & folders(auxiliary="surfaces_defects")
    (free,) = (job.folder for job in plan().jobs if not job.learns)
    assert free in {job.folder for job in plan(auxiliary="surfaces_defects").jobs}  # nothing of it was fitted
    assert all("/" not in job.folder.name for job in plan(models=[{"class_path": "clip", "label": "a/b: c"}]).jobs)


def test_the_root_is_for_sets_that_name_none() -> None:
    def root(**changes) -> dict[str, str]:
        return {one.label: one.spec.get("init_args", {}).get("root", "") for one in plan(**changes).jobs[0].data}

    data = ["btad", {"class_path": "visa", "init_args": {"root": "mine"}}, *CONTENT["data"]]
    assert root(data=data, root="here") == {"btad": "here", "visa": "mine", "surfaces": ""}
    Path("mine.yaml").write_text(yaml.safe_dump(CONTENT | {"data": ["btad"], "root": "there"}))
    assert read_plan("mine.yaml", Path("out")).jobs[0].data[0].spec["init_args"]["root"] == "there"


def test_a_root_that_is_itself_a_set_is_not_taken_for_two() -> None:
    for name in ("000", "001"):
        Path("sets/bottle/test/good").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"sets/bottle/test/good/{name}.png", np.full((8, 8, 3), 90, np.uint8))
    missing = {one.label: one.missing for one in plan(root="sets", data=["mvtec", "visa", *CONTENT["data"]]).missing}
    assert missing["mvtec"] == "No mvtec/ in sets, the folder that contains the data sets. Give --root another one."
    assert "visa" in missing
    data = [{"class_path": "mvtec", "init_args": {"root": "sets"}}]
    assert plan(data=data).missing == []  # said of this set alone, it is its own folder


@pytest.mark.parametrize(
    ("options", "whole"),
    [
        ({"category": "all", "limit": None, "holdout": 0}, True),
        ({"category": "01"}, False),
        ({"limit": 1}, False),
        ({"holdout": 0.5}, False),
    ],
)
def test_a_set_is_whole_unless_an_option_leaves_images_out(options, whole) -> None:
    for kind in ("ok", "ko"):
        Path("sets/btad/01/test", kind).mkdir(parents=True)
        cv2.imwrite(f"sets/btad/01/test/{kind}/000.png", np.full((8, 8, 3), 90, np.uint8))
    (data,) = plan(root="sets", data=[{"class_path": "btad", "init_args": options}]).jobs[0].data
    assert (data.missing, data.whole) == ("", whole)


def test_published_numbers_are_those_of_the_auxiliary_set_unless_said_otherwise() -> None:
    assert plan().family is None
    assert plan(auxiliary="visa").family == "visa_to_all"
    assert plan(auxiliary="visa", published="none").family is None
    assert plan(auxiliary="visa", published="none", family="mvtec_to_all").family == "mvtec_to_all"
    protocols = [{"auxiliary": "visa", "data": ["mvtec"]}, {"auxiliary": "mvtec", "data": ["visa", "btad"]}]
    assert plan(protocols=protocols, auxiliary=None, data=None).family == "mvtec_to_all"


def test_a_job_is_finished_by_its_reports_or_if_the_first_seed_learned_nothing() -> None:
    first, second = (job for job in plan(models=["kanoclip"]).jobs)
    assert not first.finished
    for checkpoint, expected in (({"path": "a"}, False), (None, True)):
        first.folder.mkdir(parents=True, exist_ok=True)
        first.place(first.data[0]).write_text(json.dumps({"checkpoint": checkpoint}))
        assert first.finished
        assert second.finished == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": None}, "mine.yaml should have the keys auxiliary, data, models, seeds, trainer, with lists of"),
        ({"data": "surfaces"}, "with lists of data, models and seeds"),
        ({"models": []}, "with lists of data, models and seeds"),
        ({"model": ["clip"]}, "'model' is unknown. Did you mean 'models'?"),
        ({"protocols": {"data": []}}, "mine.yaml: protocols should be a list of mappings"),
        ({"data": ["surfacess"]}, "Unknown data 'surfacess' in mine.yaml. Did you mean 'surfaces'?"),
        ({"models": [{"init_args": {}}]}, "mine.yaml: a model should be a name or have a class_path"),
        ({"models": [{"class_path": "clip", "lable": "x"}]}, "may have init_args and a label, got {"),
        (
            {"models": [{"class_path": "kanoclip", "init_args": {"adapter": "cnov"}}]},
            "Unknown adapter 'cnov' in mine.yaml. Did you mean 'conv'?",
        ),
        (
            {"models": [{"class_path": "kanoclip", "init_args": {"adaptor": "conv"}}]},
            "mine.yaml: Unknown option --model.adaptor. Did you mean --model.adapter?",
        ),
        ({"trainer": {"logger": False}}, "mine.yaml: a benchmark finds its runs by their logger"),
        ({"models": [{"class_path": "nowhere.Model"}]}, "No module named 'nowhere'"),
        ({"models": [{"class_path": "clip", "label": "a"}, {"class_path": "local_stats", "label": "a"}]}, "called 'a'"),
        (
            {"data": [{"class_path": "surfaces", "init_args": {"imags": 2}}]},
            "mine.yaml: Unknown option --data.imags. Did you mean --data.images?",
        ),
        (
            {"data": [{"class_path": "surfaces", "init_args": {"category": "gaer"}}]},
            "mine.yaml, surfaces: Unknown category 'gaer' of surfaces. Did you mean 'gear'?",
        ),
        ({"data": ["surfaces_auxiliary"]}, "tests on surfaces_auxiliary, which is not zero-shot. Test on it in a"),
        (
            {"trainer": {"max_epoch": 1}},
            "mine.yaml: Unknown option --trainer.max_epoch. Did you mean --trainer.max_epochs?",
        ),
        ({"published": "mvtec"}, "No published numbers called 'mvtec'. Use mvtec_to_all, visa_to_all or none."),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_runs(changes, message, capsys) -> None:
    assert main(["benchmark", "--config", write(**changes), "--output", "out"]) == 2
    assert message in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
    assert not Path("out").exists()
