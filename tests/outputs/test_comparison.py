"""The table of a benchmark: what is averaged over what, what stands beside it, and how each format says it."""

import csv
import io
import statistics

import pytest

from kanoclip.outputs.comparison import Comparison
from kanoclip.outputs.latex import PAGE
from kanoclip.outputs.published import families
from kanoclip.outputs.rows import Tested
from kanoclip.outputs.tables import METRICS, Metric, table_text


def outcome(
    data="visa", model="kanoclip", seed=1, domain="industrial", auxiliary="mvtec", name=None, cache=False, **values
) -> Tested:
    report = {
        "results": {"mean": values},
        "checkpoint": {"path": "a.ckpt"} if auxiliary else None,
        "seconds_per_image": 0.01 * seed,
        "images": 10,
        "options": {"data": {"cache": cache}},
        "seed": seed,
    }
    return Tested(data, data if name is None else name, domain, model, auxiliary or "nothing", report)


def rows(comparison: Comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(comparison.csv())))


def test_seeds_are_averaged_with_their_deviation_and_what_learns_nothing_counts_once() -> None:
    found = [outcome(seed=seed, image_auroc=value) for seed, value in ((1, 0.5), (2, 0.7), (3, 0.9))]
    found += [outcome(model="clip", seed=seed, auxiliary=None, image_auroc=0.4) for seed in (1, 2)]
    learned, free = rows(Comparison(found))
    assert float(learned["image_auroc"]) == pytest.approx(0.7)
    assert float(learned["image_auroc_std"]) == pytest.approx(0.2)
    assert (learned["seeds"], learned["auxiliary"], learned["ms_per_image"]) == ("3", "mvtec", "20.0")
    assert (free["seeds"], free["auxiliary"], free["image_auroc"], free["image_auroc_std"]) == (
        "1",
        "nothing",
        "0.4",
        "",
    )
    assert (learned["pixel_auroc"], learned["source"]) == ("", "measured here")


def test_the_average_over_sets_pairs_the_same_seeds() -> None:
    found = [outcome("visa", seed=seed, image_auroc=0.1 * seed) for seed in (2, 3)]  # seed 1 failed
    found += [outcome("btad", seed=seed, image_auroc=0.2 * seed) for seed in (1, 2, 3)]
    mean = rows(Comparison(found))[-1]
    assert float(mean["image_auroc"]) == pytest.approx((0.3 + 0.45) / 2)
    assert (mean["seeds"], float(mean["image_auroc_std"])) == ("2", pytest.approx(0.15 / 2**0.5))


def test_the_average_of_a_domain_is_over_sets_then_seeds_and_says_over_how_many_sets() -> None:
    found = [
        outcome("visa", seed=1, image_auroc=0.6, pixel_auroc=0.5),
        outcome("visa", seed=2, image_auroc=0.8, pixel_auroc=0.7),
        outcome("btad", seed=1, image_auroc=0.8),
        outcome("btad", seed=2, image_auroc=0.8),
        outcome("headct", domain="medical", image_auroc=0.1),
    ]
    comparison = Comparison(found)
    assert [row["data"] for row in rows(comparison)] == ["visa", "btad", "headct", "mean of 2 industrial sets"]
    mean = rows(comparison)[-1]
    assert float(mean["image_auroc"]) == pytest.approx(0.75)
    assert float(mean["image_auroc_std"]) == pytest.approx(statistics.stdev([0.7, 0.8]))
    assert (mean["image_auroc_sets"], mean["pixel_auroc_sets"], mean["image_ap_sets"]) == ("2", "1", "0")
    line = comparison.markdown().splitlines()[5]
    assert "mean of 2 industrial sets" in line
    assert "0.750 ± 0.071 |" in line
    assert "0.600 ± 0.141 n=1" in line  # pixel: one set of two
    assert "| — |" in line


def test_an_average_takes_a_model_from_all_protocols_but_keeps_rival_auxiliary_sets_apart() -> None:
    found = [outcome("visa", image_auroc=0.6), outcome("mvtec", auxiliary="visa", image_auroc=0.8)]
    (mean,) = Comparison(found).sections[-1]
    assert (mean.auxiliary, mean.values["image_auroc"]) == ("mvtec, visa", [pytest.approx(0.7)])
    found += [outcome("visa", auxiliary="btad", image_auroc=0.2), outcome("mpdd", auxiliary="btad", image_auroc=0.4)]
    averages = {mean.auxiliary: mean.values["image_auroc"] for mean in Comparison(found).sections[-1]}
    assert averages["btad"] == [pytest.approx(0.3)]


def test_other_fits_of_a_model_are_other_rows_also_with_the_same_seed() -> None:
    found = [outcome(auxiliary=f"mvtec max_epochs={epochs}", image_auroc=epochs / 10) for epochs in (1, 4)]
    assert [(row["auxiliary"], row["image_auroc"], row["seeds"]) for row in rows(Comparison(found))] == [
        ("mvtec max_epochs=1", "0.1", "1"),
        ("mvtec max_epochs=4", "0.4", "1"),
    ]


def test_a_published_aupro_is_said_to_be_less_exact_than_ours() -> None:
    def told(data: str) -> bool:
        notes = Comparison([outcome(data)], "mvtec_to_all").notes
        return "Published AUPRO takes 200 thresholds, ours is exact." in notes

    assert told("visa")
    assert not told("headct")  # of which image metrics alone are published


@pytest.mark.parametrize("family", list(families()))
def test_published_numbers_stand_beside_ours_marked_and_of_one_family_alone(family: str) -> None:
    comparison = Comparison([outcome(data, image_auroc=0.5) for data in ("visa", "mvtec", "btad")], family)
    ours, theirs = [], []
    for row in rows(comparison):
        (ours if row["source"] == "measured here" else theirs).append(row)
    assert {row["model"] for row in ours} == {"kanoclip"}
    assert len(theirs) > 10
    assert all(", published [" in row["model"] for row in theirs)
    for text in (table_text(comparison.table()), comparison.markdown(), comparison.latex(), comparison.csv()):
        assert "AnomalyCLIP, published [" in text
    other = next(name for name in families() if name != family)
    assert all(f"Family {family}." in note and other not in note for note in comparison.notes if note[0] == "[")
    fitted = {row["auxiliary"] for row in theirs if row["model"].startswith("AnomalyCLIP,") and row["data"] == "btad"}
    assert fitted == {families()[family]["auxiliary"]}
    averages = [row for section in comparison.sections[3:] for row in section]
    assert [row.model for row in averages] == ["kanoclip"]  # theirs are over other sets


def test_every_source_has_one_number_and_a_note() -> None:
    comparison = Comparison([outcome(data, image_auroc=0.5) for data in ("visa", "btad")], "mvtec_to_all")
    notes = [note for note in comparison.notes if note[0] == "["]
    assert [note.split("]")[0][1:] for note in notes] == [str(n + 1) for n in range(len(notes))]
    used = {row.model.rsplit("[")[-1][:-1] for section in comparison.sections for row in section if row.source}
    assert used == {str(n + 1) for n in range(len(notes))}
    assert any(
        "AF-CLIP, as published: AF-CLIP, weight/*.txt in its repository. Family mvtec_to_all" in n for n in notes
    )
    assert any("blur of sigma 4; image score: global probability" in note for note in notes)


def test_a_set_that_is_not_whole_has_no_published_numbers_beside_it() -> None:
    assert all(row["source"] == "measured here" for row in rows(Comparison([outcome(name="")], "mvtec_to_all")))


def test_latex_is_a_booktabs_table_with_escaped_names_and_one_kind_of_line() -> None:
    found = [outcome("ksdd_anomalyclip", "50 % & more", image_auroc=0.5, pixel_auroc=0.25), outcome("visa", seed=2)]
    text = Comparison(found, notes=["A note on a_b."]).latex()
    assert r"ksdd\_anomalyclip & 50 \% \& more & mvtec & 0.500 & -- & -- & 0.250 & -- & -- & -- & 1 \\" in text
    assert r"A note on a\_b.\par" in text
    lines = text.splitlines()
    body = [line for line in lines[: lines.index(r"\bottomrule")] if line.endswith(r"\\")]
    assert {line.count("&") - line.count(r"\&") for line in body if "multicolumn" not in line} == {10}
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert text.count(r"\midrule") == 3  # below the head, between the sets, before the average
    assert "_" not in text.replace(r"\_", "")


def test_a_long_latex_table_breaks_over_pages() -> None:
    found = [outcome("visa", f"model {number}") for number in range(PAGE + 1)]
    text = Comparison(found).latex()
    assert r"\begin{longtable}" in text
    assert r"\usepackage{longtable}" in text
    assert r"\endhead" in text


def test_data_and_models_stay_in_the_order_given_and_data_are_named_once() -> None:
    found = [outcome("visa", "b"), outcome("visa", "a"), outcome("btad", "b", domain="other")]
    lines = Comparison(found).markdown().splitlines()[2:5]
    assert [line.split("|")[1:3] for line in lines] == [[" visa ", " b "], ["  ", " a "], [" btad ", " b "]]


def test_a_pipe_in_a_name_does_not_break_the_markdown() -> None:
    assert r"a \| b" in Comparison([outcome(model="a | b")]).markdown()


def test_the_time_of_an_image_is_not_told_where_the_backbone_was_spared() -> None:
    plain, cached = rows(Comparison([outcome(image_auroc=0.5), outcome("btad", cache=True, image_auroc=0.5)]))[:2]
    assert (plain["ms_per_image"], cached["ms_per_image"]) == ("10.0", "")


def test_a_metric_of_which_less_is_better_is_told(monkeypatch) -> None:
    assert "higher is better;" in Comparison([outcome()]).notes[0]
    monkeypatch.setitem(METRICS, "pixel_error", Metric("pixel", "error", higher_is_better=False))
    comparison = Comparison([outcome(pixel_error=0.125)])
    assert "higher is better, but lower for pixel error;" in comparison.notes[0]
    assert r"\multicolumn{5}{c}{pixel}" in comparison.latex()
    assert rows(comparison)[0]["pixel_error"] == "0.125"


def test_a_label_of_any_signs_is_shown_as_it_is_in_latex() -> None:
    text = Comparison([outcome(data="[x] *", model="a & b_c <|>")]).latex()
    assert "\n{}[x] * & a \\& b\\_c \\textless{}\\textbar{}\\textgreater{} & " in text


def test_on_a_terminal_of_80_columns_the_table_has_means_and_seeds_and_fits() -> None:
    scores = dict.fromkeys(METRICS, 0.9876)
    found = [outcome(data, seed=seed, **scores) for data in ("visa", "bmad_oct2017") for seed in (1, 2, 3)]
    found += [outcome("visa", model="clip_vv_knpl_bicmci", seed=1, **scores)]
    lines = table_text(Comparison(found).narrow_table(), width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[-1] for line in lines if line.strip().startswith(("kanoclip", "clip_vv"))] == [
        "3",
        "1",
        "3",
        "3",
        "1",
    ]
