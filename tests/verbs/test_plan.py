"""A benchmark's config: what it asks for, what is on disk, and every mistake told before anything runs."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from kanoclip.data.sets.mvtec import BTAD
from kanoclip.verbs.plan import Plan, read_plan
from kanoclip.verbs.specs import PlanError
from kanoclip.verbs.table import main

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
        ("kanoclip", "surfaces_auxiliary", 1, ["surfaces", "surfaces_defects"]),
        ("april_gan", "surfaces", 7, ["surfaces_auxiliary"]),
        ("kanoclip", "surfaces_auxiliary", 2, ["surfaces", "surfaces_defects"]),
    ]


def test_what_learns_nothing_is_one_job_for_all_protocols() -> None:
    protocols = [{}, {"auxiliary": "surfaces_defects", "data": ["surfaces_auxiliary", CONTENT["data"][0]]}]
    found = [(job.name, [one.name for one in job.data]) for job in plan(protocols=protocols, seeds=[1]).jobs]
    assert found == [
        ("local_stats", ["surfaces", "surfaces_auxiliary"]),
        ("kanoclip on surfaces_auxiliary", ["surfaces"]),
        ("kanoclip on surfaces_defects", ["surfaces_auxiliary", "surfaces"]),
    ]


def test_fits_are_told_apart_by_auxiliary_set_and_label_of_the_protocol() -> None:
    small = {"class_path": "surfaces_auxiliary", "init_args": {"images": 4}, "label": "four"}
    protocols = [{}, {"trainer": {"max_epochs": 4}, "label": "4 epochs"}, {"auxiliary": small}]
    found = plan(protocols=protocols, seeds=[1]).jobs
    learned = [job for job in found if job.learns]
    assert [job.fitted_on for job in learned] == ["surfaces_auxiliary", "surfaces_auxiliary, 4 epochs", "four"]
    assert [job.name for job in learned] == [f"kanoclip on {job.fitted_on}" for job in learned]
    assert len({job.folder for job in learned}) == 3
    assert [(job.label, job.fitted_on) for job in found if not job.learns] == [("local_stats", "nothing")]


def test_a_simple_config_is_one_protocol() -> None:
    beside = {key: value for key, value in CONTENT.items() if key not in ("auxiliary", "data")}
    inside = {key: CONTENT[key] for key in ("auxiliary", "data")}
    assert plan().jobs == plan(**dict.fromkeys(CONTENT), protocols=[inside | beside]).jobs


def test_a_row_goes_by_its_label_or_its_name() -> None:
    models = ["kanoclip", {"class_path": "kanoclip", "init_args": {"lr": 0.1}, "label": "fast"}, "clip"]
    assert [label for label, *_ in jobs(seeds=[1], models=models)] == ["kanoclip", "fast", "clip"]


def test_rows_that_differ_in_the_image_score_alone_share_a_fit() -> None:
    score = {"class_path": "kanoclip", "init_args": {"score": "map_max", "sigma": 8}, "label": "score"}
    other = {"class_path": "kanoclip", "init_args": {"adapter": "linear"}, "label": "adapter"}
    plain, scored, adapted = plan(seeds=[1], models=["kanoclip", score, other]).jobs
    assert plain.fit_folder == scored.fit_folder == plain.folder != scored.folder
    assert scored.heads["init_args"] == {}
    assert adapted.fit_folder not in (plain.fit_folder, scored.folder)


def test_a_memory_of_reference_images_shares_a_fit_and_one_that_the_fit_fills_does_not() -> None:
    def row(model: str, memory: str, **options) -> dict:
        options = {"memory": {"class_path": memory, "init_args": options}}
        return {"class_path": model, "init_args": options, "label": f"{model} {memory} {options}"}

    few, filled = row("kanoclip", "patches", shots=1), row("kanoclip", "labelled")
    memories = [row("mrad_ft", "labelled_projected", **one) for one in ({"size": 5}, {"hide_patches": 0.3})]
    models = ["kanoclip", few, filled, "mrad_ft", *memories]
    plain, few, filled, *memories = plan(seeds=[1], models=models).jobs
    assert plain.fit_folder == few.fit_folder
    assert len({one.fit_folder for one in (plain, filled, *memories)}) == 5
    assert memories[1].heads["init_args"]["memory"]["init_args"] == {"size": 5}


def folders(learns: bool = True, **changes) -> set[str]:
    return {job.folder.name for job in plan(**changes).jobs if job.learns is learns}


def auxiliary(**options: object) -> dict:
    return {"class_path": "surfaces_auxiliary", "init_args": {"images": 2, **options}}


def test_a_folder_is_the_name_the_options_and_the_seed() -> None:
    first, second = sorted(folders(models=["kanoclip"]))
    assert first.startswith("kanoclip-")
    assert (first[-6:], second[-6:]) == ("-seed1", "-seed2")
    assert all("/" not in name for name in folders(False, models=[{"class_path": "clip", "label": "a/b: c"}]))


@pytest.mark.parametrize(
    "changes",
    [
        {"root": "elsewhere"},
        {"data": ["surfaces_defects"]},
        {"models": ["clip", {"class_path": "kanoclip", "init_args": {"lr": 0.1}, "label": "fast"}, "kanoclip"]},
        {"models": [{"class_path": "kanoclip", "label": "another name"}]},
        {"auxiliary": auxiliary(num_workers=0, cache=True)},
        {"trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1}},
    ],
)
def test_a_fit_is_the_same_whatever_other_rows_are_and_wherever_it_runs(changes) -> None:
    assert folders() <= folders(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer": {"max_epochs": 2}},
        {"trainer": {"max_epochs": 1, "precision": "bf16-mixed"}},
        {"auxiliary": "surfaces_defects"},
        {"auxiliary": auxiliary(batch_size=4)},
        {"auxiliary": auxiliary(seed=5)},
        {"models": [{"class_path": "kanoclip", "init_args": {"lr": 0.1}}]},
        {"seeds": [3]},
    ],
)
def test_a_fit_is_another_one_with_other_options(changes) -> None:
    assert not folders() & folders(**changes)


def test_what_learns_nothing_does_not_depend_on_how_others_are_fitted_but_on_the_precision() -> None:
    (free,) = folders(False)
    assert {free} == folders(False, auxiliary="surfaces_defects", trainer={"max_epochs": 2}, seeds=[2, 3])
    assert {free} != folders(False, trainer={"precision": "bf16-mixed"})


def test_a_report_is_named_by_what_is_tested_and_not_by_how_it_is_read() -> None:
    def path(root: str | None = None, **options: object) -> Path:
        job = plan(root, data=[{"class_path": "btad", "init_args": options}], models=["clip"]).jobs[0]
        return job.report_path(job.data[0])

    assert path() == path("elsewhere", num_workers=0, batch_size=3, cache=True)
    assert len({path(), path(limit=2), path(mask_threshold=0), path(category="01")}) == 4


def test_a_test_draws_by_one_seed_whatever_that_of_the_fit_is_and_a_given_one_stays() -> None:
    data = [*CONTENT["data"], {"class_path": "surfaces", "init_args": {"seed": 5}, "label": "other"}]
    found = plan(data=data).jobs[1].data
    assert [one.seeded(111)["init_args"]["seed"] for one in found] == [111, 5]


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
    missing = {one.label: one.problem for one in plan(root="sets", data=["mvtec", "visa", *CONTENT["data"]]).missing}
    assert missing["mvtec"] == "No mvtec/ in sets, the folder that contains the data sets. Give --root another one."
    assert "visa" in missing
    data = [{"class_path": "mvtec", "init_args": {"root": "sets"}}]
    assert plan(data=data).missing == []  # said of this set alone, it is its own folder


@pytest.mark.parametrize(
    ("options", "counts", "whole"),
    [
        ({"category": "all", "limit": None, "holdout": 0}, (2, 3), True),
        ({"category": "01"}, (2, 3), True),  # there is no other one
        ({"limit": 1}, (2, 3), False),
        ({"holdout": 0.5}, (2, 3), False),
        ({}, (2, 4), False),
        ({}, None, False),  # not known
    ],
)
def test_a_set_is_whole_if_as_many_images_are_tested_as_are_published(options, counts, whole, monkeypatch) -> None:
    for kind in ("ok", "ko"):
        Path("sets/btad/01/test", kind).mkdir(parents=True)
        for number in range(2 if kind == "ok" else 3):
            cv2.imwrite(f"sets/btad/01/test/{kind}/{number:03}.png", np.full((8, 8, 3), 90, np.uint8))
    monkeypatch.setattr(BTAD, "about", replace(BTAD.about, counts=counts))
    (data,) = plan(root="sets", data=[{"class_path": "btad", "init_args": options}]).jobs[0].data
    assert (data.problem, data.whole) == ("", whole)


def test_published_numbers_are_those_of_the_auxiliary_set_unless_said_otherwise() -> None:
    assert plan().family is None
    assert plan(auxiliary="visa").family == "visa_to_all"
    assert plan(auxiliary="visa", published="none").family is None
    assert plan(auxiliary="visa", published="none", family="mvtec_to_all").family == "mvtec_to_all"
    protocols = [{"auxiliary": "visa", "data": ["mvtec"]}, {"auxiliary": "mvtec", "data": ["visa", "btad"]}]
    assert plan(protocols=protocols, auxiliary=None, data=None).family == "mvtec_to_all"


def test_a_set_that_is_there_but_wrong_is_damaged_and_one_that_is_not_there_is_missing() -> None:
    Path("sets/btad/01/ground_truth/ko").mkdir(parents=True)
    Path("sets/btad/01/test/ok").mkdir(parents=True)
    for place in ("ground_truth/ko/7.png", "test/ok/1.png"):
        cv2.imwrite(f"sets/btad/01/{place}", np.full((8, 8, 3), 90, np.uint8))
    found = plan(root="sets", data=["btad", "visa", *CONTENT["data"]])
    assert [one.label for one in found.missing] == ["visa"]
    (damaged,) = found.damaged
    assert damaged.problem.startswith("mine.yaml, btad: No image for the mask sets/btad/01/ground_truth/ko/7.png")
    assert [one.label for one in found.jobs[0].available] == ["surfaces"]


@pytest.mark.parametrize("way", ["below", "link", "same"])
def test_a_set_that_shows_files_of_the_auxiliary_set_is_refused_whatever_it_is_called(way) -> None:
    Path("photos/part/normal").mkdir(parents=True)
    cv2.imwrite("photos/part/normal/a.png", np.full((8, 8, 3), 90, np.uint8))
    Path("photos/normal").symlink_to("part/normal")
    Path("links/normal").mkdir(parents=True)
    Path("links/normal/b.png").symlink_to(Path("photos/part/normal/a.png").resolve())
    root = {"below": "photos/part", "link": "links", "same": "./photos"}[way]
    sets = [{"class_path": "folder", "init_args": {"root": one}} for one in ("photos", root)]
    with pytest.raises(PlanError, match="fits on folder and tests on folder, which is not zero-shot"):
        plan(auxiliary=sets[0], data=sets[1:])


def test_one_seed_and_no_options_of_the_trainer_are_usual_and_a_seed_alone_is_one() -> None:
    (job,) = plan(seeds=None, trainer=None, models=["kanoclip"]).jobs
    assert (job.seed, job.trainer) == (111, {})
    assert [job.seed for job in plan(seeds=7, models=["kanoclip"]).jobs] == [7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auxiliary": None}, "mine.yaml: auxiliary should be a data set, such as mvtec; it is missing."),
        ({"data": "surfaces"}, "mine.yaml: data should be a list of data sets, such as [visa, btad]; got '"),
        ({"models": []}, "mine.yaml: models should be a list of models, such as [clip, kanoclip]; got []."),
        ({"seeds": "111"}, "mine.yaml: seeds should be a list of whole numbers, such as [111, 112]; got '111'."),
        ({"seeds": [1.5]}, "mine.yaml: seeds should be a list of whole numbers, such as [111, 112]; got [1.5]."),
        ({"trainer": 3}, "mine.yaml: trainer should be options of the trainer, such as {max_epochs: 15}; got 3."),
        ({"model": ["clip"]}, "'model' is unknown. Did you mean 'models'?"),
        ({"protocols": {"data": []}}, "mine.yaml: protocols should be a list of mappings"),
        ({"data": ["surfacess"]}, "Unknown data 'surfacess' in mine.yaml. Did you mean 'surfaces'?"),
        ({"models": [{"init_args": {}}]}, "mine.yaml: a model should be a name or have a class_path"),
        (
            {"models": [{"class_path": "clip", "lable": "x"}]},
            "may have init_args, label, checkpoint, expected, grid and chosen_by, got {",
        ),
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
        (
            {"models": [{"class_path": "clip", "label": "a"}, {"class_path": "local_stats", "label": "a"}]},
            "mine.yaml: two rows of models are called 'a': clip {} and local_stats {}. Give one of them another label: "
            "{label: a 2, class_path: local_stats, ...}.",
        ),
        (
            {"data": [CONTENT["data"][0], "surfaces"]},
            'two rows of data are called \'surfaces\': surfaces {"category": "gear", "images": 2} and surfaces {}.',
        ),
        (
            {"protocols": [{}, {"trainer": {"max_epochs": 2}}]},
            "two rows are called 'kanoclip', fitted on surfaces_auxiliary, and have other trainers or auxiliary sets. "
            "Give one protocol a label of its own.",
        ),
        (
            {"protocols": [{}, {"trainer": {"precision": "bf16-mixed"}}], "models": ["clip"]},
            "two rows are called 'clip', fitted on nothing, and have other trainers or auxiliary sets. Give one model",
        ),
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
