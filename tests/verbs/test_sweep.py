"""A grid chooses on the auxiliary set alone, and what it has chosen is the row that one would have typed."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from kanoclip.verbs.plan import Plan, read_plan
from kanoclip.verbs.sweep import Sweep, notes
from kanoclip.verbs.table import main

SMALL = {"images": 2, "num_workers": 0}
AUXILIARY = {"class_path": "surfaces_auxiliary", "init_args": {**SMALL, "category": ["wood", "ring", "tile"]}}
STATS = {"class_path": "local_stats", "grid": {"image_size": [16, 32]}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_model(tiny_name) -> dict:
    backbone = {"class_path": "clip", "init_args": {"name": tiny_name, "image_size": 32}}
    return {"class_path": "kanoclip", "init_args": {"backbone": backbone}}


def write(*models, **changes) -> str:
    content = {
        "auxiliary": AUXILIARY,
        "data": [{"class_path": "surfaces", "init_args": {**SMALL, "category": "gear"}}],
        "models": list(models),
        "seeds": [1, 2],
        "trainer": {"max_epochs": 1},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return "mine.yaml"


def plan(*models, **changes) -> Plan:
    return read_plan(write(*models, **changes), Path("out"))


def run(*models, **changes) -> int:
    return main(["benchmark", "--config", write(*models, **changes), "--output", "out", "--processes", "1"])


def test_each_category_is_held_out_once_and_no_tested_image_chooses() -> None:
    made = plan(STATS)
    (sweep,) = made.sweeps
    assert sweep.folds == ["ring", "tile", "wood"]
    assert [one.told for one in sweep.candidates] == ["image_size 16", "image_size 32"]
    assert len(made.work) == len(sweep.jobs) == 6
    for job, held in zip(sweep.jobs, sweep.folds * 2, strict=True):
        (tested,) = job.data
        assert tested.module.categories == [held]
        assert sorted([*job.auxiliary.module.categories, held]) == sweep.folds
        assert not job.auxiliary.files("fit") & tested.files("test")
        assert not tested.files("test") & made.jobs[0].data[0].files("test")
        assert job.seed == 1
    (row,) = made.jobs
    assert (row.chosen, row.possible) == (None, False)


def test_many_categories_are_dealt_out_to_three_folds_and_of_one_a_share_of_images_is_held_out() -> None:
    few = {"images": 10, "num_workers": 0}
    (sweep,) = plan(STATS, auxiliary={"class_path": "surfaces_auxiliary", "init_args": few}).sweeps
    assert [len(one.split(", ")) for one in sweep.folds] == [7, 6, 6]
    (sweep,) = plan(
        STATS, auxiliary={"class_path": "surfaces_auxiliary", "init_args": few | {"category": "wood"}}
    ).sweeps
    assert sweep.folds == ["30 % of the images of wood"]
    (job, _) = sweep.jobs
    assert not job.auxiliary.files("fit") & job.data[0].files("test")
    assert (len(job.auxiliary.module.part("fit")), len(job.data[0].module.part("test"))) == (6, 4)


@pytest.mark.slow
def test_the_chosen_row_is_the_one_typed_by_hand_and_all_is_done_once(tiny_model, monkeypatch, capsys) -> None:
    grid = {"lr": [1e-3, 0.1], "interaction.heads": [4, 2]}
    swept = {**tiny_model, "label": "swept", "grid": grid, "chosen_by": "pixel_ap"}
    assert run(swept) == 0
    (sweep,) = plan(swept).sweeps
    means = [sum(values) / 3 for values in sweep.values]
    best = sweep.candidates[means.index(max(means))]
    assert sweep.chosen is best
    interaction = {"class_path": "bi_cmci", "init_args": {"heads": best.options["interaction.heads"]}}
    options = {**tiny_model["init_args"], "lr": best.options["lr"], "interaction": interaction}
    jobs = plan(swept, {**tiny_model, "label": "typed", "init_args": options}).jobs
    assert {job.folder for job in jobs if job.label == "swept"} == {job.folder for job in jobs if job.label == "typed"}
    assert all(job.finished for job in jobs)
    said = f"swept: {best.told} chosen of 4 candidates by pixel AP, mean over 3 folds of surfaces_auxiliary"
    for file in ("table.txt", "table.md", "table.tex", "report.html"):
        assert said.replace("_", r"\_" if file == "table.tex" else "_") in Path("out", file).read_text()
    assert "Choice of options" in Path("out/report.html").read_text()
    assert f"| {best.told} | pixel_ap | {max(means):.3f} |" in Path("out/table.md").read_text()
    (told,) = json.loads(Path("out/results.json").read_text())["chosen"]
    assert [one["mean"] for one in told["candidates"]] == pytest.approx(means)
    assert [one["options"] for one in told["candidates"] if one["chosen"]] == [best.options]
    with open("out/results.csv", newline="") as file:
        assert [(row["model"], row["chosen"], row["seeds"]) for row in csv.DictReader(file)] == [
            ("swept", best.told, "2")
        ]
    with open("out/chosen.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [value for values in sweep.values for value in values]
    with monkeypatch.context() as patch:
        patch.setattr("kanoclip.verbs.work.KanoclipCLI", lambda *_: pytest.fail("ran again"))
        assert run(swept) == 0


def test_what_differs_in_the_score_alone_is_fitted_once_for_each_fold(tiny_model) -> None:
    (sweep,) = plan({**tiny_model, "grid": {"sigma": [1.0, 2.0, 4.0]}}).sweeps
    assert len({job.fit_folder for job in sweep.jobs}) == 3
    assert len({job.folder for job in sweep.jobs}) == 9


def test_a_component_is_chosen_by_its_name_and_keeps_its_options(tiny_model) -> None:
    given = {**tiny_model["init_args"], "interaction": {"class_path": "level_projection", "init_args": {"bias": False}}}
    (sweep,) = plan({**tiny_model, "init_args": given, "grid": {"interaction.relu": [True]}}).sweeps
    projection = "kanoclip.heads.interaction.LevelProjection"
    assert sweep.candidates[0].spec["init_args"]["interaction"] == {
        "class_path": projection,
        "init_args": {"bias": False, "relu": True},
    }
    grid = {"interaction.heads": [2], "interaction": ["bi_cmci", "text_to_patch"]}  # the component first
    (sweep,) = plan({**tiny_model, "grid": grid}).sweeps
    assert [one.told for one in sweep.candidates] == [
        "interaction.heads 2, interaction bi_cmci",
        "interaction.heads 2, interaction text_to_patch",
    ]
    assert [one.spec["init_args"]["interaction"]["init_args"] for one in sweep.candidates] == [{"heads": 2}] * 2


def test_the_best_mean_is_chosen_and_of_equal_ones_the_first() -> None:
    sweep = Sweep(
        "a", "b", "image_auroc", ["x", "y"], [*plan(STATS).sweeps[0].candidates, *plan(STATS).sweeps[0].candidates]
    )
    vars(sweep)["values"] = [[0.2, 0.4], [0.1, 0.9], [0.9, 0.1], [0.0, 0.0]]
    assert sweep.chosen is sweep.candidates[1]


def test_a_choice_waits_for_every_candidate_and_says_why(tiny_model, capsys) -> None:
    wrong = {**tiny_model, "grid": {"terms": [{"kd": 1.0}, {"no": 1.0}]}}  # only a fit knows its terms
    assert run({"class_path": "local_stats", "init_args": {"image_size": 32}}, wrong, seeds=[1]) == 1
    said = capsys.readouterr()
    assert "kanoclip: its options are not chosen, as not all candidates are done on the folds" in said.out
    assert 'kanoclip with terms {"no": 1.0}, fold 1 of 3 failed. fit on surfaces_auxiliary, fold 1 of 3:' in said.err
    tests = json.loads(Path("out/results.json").read_text())["tests"]
    assert [one["model"] for one in tests] == ["local_stats"]


def test_a_dry_run_says_what_a_choice_needs_and_without_the_auxiliary_set_the_row_is_left_out(capsys) -> None:
    assert main(["benchmark", "--config", write(STATS), "--output", "out", "--dry_run"]) == 0
    assert "local_stats: 0 fits and 6 tests to choose from 2 candidates on 3 folds" in capsys.readouterr().out
    made = plan(STATS, auxiliary={"class_path": "visa", "init_args": {"root": "nowhere"}})
    assert made.work == []
    assert [one.label for one in made.missing] == ["visa"]
    assert made.unfitted == {"visa": ["local_stats"]}
    assert "not chosen" in notes(made.sweeps)[0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"grid": {}}, "mine.yaml, row: grid should be options with the values to try, such as grid: {lr: ["),
        ({"grid": [1]}, "mine.yaml, row: grid should be options with the values to try"),
        ({"grid": None}, "mine.yaml, row: grid should be options with the values to try"),
        ({"grid": {"lr": []}}, "mine.yaml, row: grid.lr should be a list of the values to try, got []"),
        ({"grid": {"lr": 0.1}}, "mine.yaml, row: grid.lr should be a list of the values to try, got 0.1"),
        ({"grid": {"lrr": [1]}}, "mine.yaml, row: grid.lrr: Unknown option --model.lrr. Did you mean --model.lr?"),
        ({"grid": {"lr": [0.1, "x"]}}, "mine.yaml, row: grid.lr: --model.lr: Expected float. Got value: x"),
        ({"grid": {"interaction.headz": [4]}}, "mine.yaml, row: grid.interaction.headz: Unknown option"),
        ({"grid": {"interaktion.heads": [4]}}, "mine.yaml, row: grid.interaktion.heads: interaktion is none of the"),
        ({"grid": {"lr.x": [4]}}, "mine.yaml, row: grid.lr.x: lr is none of the model's components"),
        ({"grid": {"adapter": ["cnov"]}}, "mine.yaml, row: grid.adapter: Unknown adapter 'cnov' in mine.yaml. Did"),
        ({"grid": {"lr": [1]}, "chosen_by": "auroc"}, "mine.yaml, row: chosen_by 'auroc' is no metric. Did you mean"),
        ({"grid": {"lr": [1]}, "chosen_by": ["image_ap"]}, "mine.yaml, row: chosen_by ['image_ap'] is no metric."),
        ({"chosen_by": "image_ap"}, "mine.yaml, row: chosen_by says how a grid chooses, and there is no grid"),
        ({"grid": {"sigma": [1]}, "checkpoint": "a.ckpt"}, "mine.yaml, row: a row with a checkpoint is not fitted"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_its_row_and_key(row, said, capsys) -> None:
    config = write({"class_path": "kanoclip", "label": "row", "init_args": {"backbone": "embedded"}, **row})
    assert main(["benchmark", "--config", config, "--output", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lr", float("nan"), "grid with lr NaN: lr is nan, expected 0 or more"),
        ("lr", -1.0, "grid with lr -1.0: lr is -1.0, expected 0 or more"),
        ("betas", [0.5, 1.5], "grid with betas [0.5, 1.5]: betas are (0.5, 1.5), expected two numbers"),
        ("alpha", float("nan"), "grid with alpha NaN: The weight of the loss term kd is nan, expected a finite"),
        ("lr", None, "grid with lr null: lr is None, expected 0 or more"),
        ("interaction.heads", 3, "grid with interaction.heads 3: interaction.heads 3 does not divide the width"),
        ("interaction.heads", 0, "grid with interaction.heads 0: interaction.heads 0 does not divide the width"),
        ("interaction.head", 4, "Unknown option --model.interaction.head. Did you mean --model.interaction.heads?"),
    ],
)
def test_a_value_that_the_model_refuses_is_told_before_anything_is_fitted(tiny_model, key, value, said, capsys) -> None:
    good = {"lr": 1e-3, "betas": [0.5, 0.9], "alpha": 1.0, "interaction.heads": 4, "interaction.head": 4}[key]
    assert run({**tiny_model, "label": "mine", "grid": {key: [good, value]}}) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one]
    assert "mine.yaml, mine: grid" in line
    assert said in line
    assert not list(Path("out").glob("*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"pretrained": "nowhere.pt"}, "No weights at nowhere.pt"), ({"name": "ViT-B-16"}, "could not be downloaded")],
)
def test_of_weights_that_are_missing_each_fit_tells(options, said, monkeypatch, capsys) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone = {"class_path": "clip", "init_args": options}
    row = {"class_path": "kanoclip", "init_args": {"backbone": backbone}, "grid": {"lr": [1e-3, 1e-2]}}
    assert run(row, STATS, seeds=[1]) == 1
    told = capsys.readouterr().err
    assert "kanoclip with lr 0.001, fold 1 of 3 failed." in told
    assert said in told
    assert "local_stats: image_size" in Path("out/table.txt").read_text()  # other rows are done


def test_two_rows_that_differ_in_their_grids_alone_are_told_apart(capsys) -> None:
    assert run(STATS, {**STATS, "grid": {"image_size": [64]}}) == 2
    assert 'and {"grid": {"image_size": [64]}}' in capsys.readouterr().err


def test_a_metric_that_a_fold_cannot_give_is_told_before_anything_runs(capsys) -> None:
    import numpy as np

    from kanoclip.data.files import write_image

    for name in ("good/0", "good/1", "hole/0", "hole/1"):
        for category in ("nut", "bolt"):
            value = 80 * int(name[-1]) + len(category)
            write_image(Path(f"own/{category}/test/{name}.png"), np.full((32, 32, 3), value, np.uint8))
    own = {"class_path": "folder", "init_args": {"root": "own", "num_workers": 0}}
    config = write({**STATS, "chosen_by": "pixel_ap"}, auxiliary=own)
    assert main(["benchmark", "--config", config, "--output", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine.yaml, local_stats: chosen_by pixel_ap is not defined where " in line
    assert "is held out, as there are no masks. Choose by another metric" in line
