import csv
import io

import pytest

from kanoclip.outputs.tables import (
    METRICS,
    Metric,
    print_results,
    results_csv,
    results_rows,
    results_table,
    table_text,
    word_table,
)

RESULTS = {
    "ring": {"image_auroc": 0.5, "pixel_auroc": None, "images": 10, "anomalous": 4},
    "nut": {"image_auroc": 1.0, "pixel_auroc": 0.75, "images": 3, "anomalous": 1},
    "mean": {"image_auroc": 0.123},
}


def test_categories_are_sorted_and_the_mean_is_over_those_where_it_is_defined():
    nut, ring, mean = results_rows(RESULTS)
    assert (nut["category"], ring["category"]) == ("nut", "ring")
    assert (ring["normal"], ring["anomalous"], ring["pixel_auroc"]) == (6, 4, None)
    assert (mean["images"], mean["image_auroc"], mean["pixel_auroc"], mean["image_ap"]) == (13, 0.75, 0.75, None)
    assert (mean["over"]["image_auroc"], mean["over"]["pixel_auroc"]) == (2, 1)


def test_the_undefined_is_a_dash_with_an_explanation_and_partial_means_say_so():
    text = table_text(results_table(RESULTS))
    row = next(line for line in text.splitlines() if "ring" in line)
    assert row.split() == ["ring", "6", "4", "0.500", *"——————"]
    assert "0.750 n=1" in text
    assert "— not defined" in text


def test_a_narrow_terminal_loses_no_digits(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert "0.750 n=1" in table_text(results_table(RESULTS))


def test_results_fit_80_columns_and_a_wide_terminal_or_a_pipe_gets_all_with_room(monkeypatch, capsys):
    values = dict.fromkeys(METRICS, 0.5) | {"images": 12_345, "anomalous": 2_345}
    results = dict.fromkeys(("transistor", "macaroni2"), values)
    widths = []
    for columns in ("80", "87", "200", ""):
        monkeypatch.setenv("COLUMNS", columns)
        print_results(results)
        said = capsys.readouterr().out
        assert said.count("0.500") == 3 * len(METRICS)
        widths.append(max(map(len, said.splitlines())))
    assert widths[0] <= 80 < widths[2] == widths[3]
    assert widths[1] <= 87
    monkeypatch.setenv("COLUMNS", "60")
    print_results({"a category with a name of several words": values, "ring": RESULTS["ring"]})
    said = capsys.readouterr().out
    assert "n=1" in said
    assert max(map(len, said.splitlines())) <= 60


@pytest.mark.parametrize("text", ["[/b]", "[red]bolt", ":x:", "a [link=x]b[/link]", "\\[x]"])
def test_text_from_outside_is_never_taken_for_markup(text, capsys):
    assert text in table_text(word_table(("file",), [(text,)]))
    assert text in table_text(results_table({text: RESULTS["nut"]}))
    print_results({text: RESULTS["nut"], "ring": RESULTS["ring"]})
    assert text in capsys.readouterr().out


def test_words_are_folded_to_the_width_whole_and_columns_may_be_left_out_for_it(monkeypatch, capsys):
    headings, row = ("name", "paper", "where"), ("mvtec", "yes", "/a/path/" + "x" * 40)
    layouts = [word_table(headings, [row], without) for without in ((), ("paper",))]
    assert "yes" in table_text(*layouts)
    narrow = table_text(*layouts, width=30)
    assert "yes" not in narrow
    assert max(map(len, narrow.splitlines())) <= 30
    assert narrow.count("x") == 40


def test_the_csv_has_empty_cells_where_undefined():
    nut, ring, mean, over = csv.DictReader(io.StringIO(results_csv(RESULTS)))
    assert (ring["pixel_auroc"], nut["pixel_auroc"], mean["pixel_auroc"], over["pixel_auroc"]) == (
        "",
        "0.75",
        "0.75",
        "1",
    )


@pytest.mark.parametrize("nothing", [{}, {"mean": {}}])
def test_results_of_nothing_are_a_mean_of_nothing(nothing):
    (mean,) = results_rows(nothing)
    assert (mean["images"], mean["image_auroc"]) == (0, None)


@pytest.mark.parametrize("category", ["mean", "mean_over"])
def test_a_category_that_is_called_like_the_mean_keeps_its_row(category):
    results = {f"{category} (category)": RESULTS["ring"], "nut": RESULTS["nut"], "mean": {"image_auroc": 0.75}}
    assert [row["category"] for row in results_rows(results)] == [f"{category} (category)", "nut", "mean"]
    rows = {row["category"]: row for row in csv.DictReader(io.StringIO(results_csv(results)))}
    assert list(rows) == [f"{category} (category)", "nut", "mean", "mean_over"]
    assert (rows["mean"]["image_auroc"], rows["mean_over"]["image_auroc"]) == ("0.75", "2")
    assert f"{category} (category)" in table_text(results_table(results))


def test_a_metric_has_a_level_a_heading_and_a_format_and_those_of_a_level_stand_side_by_side():
    levels = [metric.level for metric in METRICS.values()]
    assert levels == sorted(levels)
    assert all(name.startswith(f"{metric.level}_") for name, metric in METRICS.items())
    assert Metric("image", "loss", higher_is_better=False, digits=1).show(0.25) == "0.2"
    assert METRICS["image_auroc"].show(None) == METRICS["image_auroc"].show(float("nan")) == "—"
