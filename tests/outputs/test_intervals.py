"""Differences that mean something: of the same images, over fits, and marked where they are clear."""

import csv
import io
import json

import numpy as np
import pytest

from kanoclip.metrics.bootstrap import DRAWS
from kanoclip.outputs import ResultsWriter
from kanoclip.outputs.comparison import Comparison
from kanoclip.outputs.intervals import FILE, difference, over_fits, read_draws, separated
from kanoclip.outputs.rows import Tested
from kanoclip.outputs.tables import table_text

SPREAD = np.random.default_rng(0).normal(0, 0.02, DRAWS)  # what other images do to every model
OWN = np.random.default_rng(1).normal(0, 0.004, (20, DRAWS))  # and to each alone


def outcome(model, value, seed=1, data="visa", own=0, samples="s", spread=SPREAD, auxiliary="mvtec", fitted=True):
    report = {
        "results": {"mean": {"image_auroc": value}},
        "checkpoint": {"path": "a.ckpt"} if fitted else None,
        "seconds_per_image": 0.01,
        "images": 10,
        "options": {"data": {}},
        "seed": seed,
        "samples": samples,
    }
    return Tested(data, data, "industrial", model, auxiliary, report, {"image_auroc": value + spread + OWN[own]})


def marks(comparison: Comparison) -> list[str]:
    """The models that are marked as the best."""
    text = comparison.markdown().partition("\n\n")[0]
    return [line.split("|")[2].strip() for line in text.splitlines()[2:] if r"\*" in line.split("|")[4]]


def test_what_is_better_in_all_draws_is_the_best_although_the_intervals_overlap() -> None:
    found = [outcome("one", 0.80), outcome("two", 0.83, own=1), outcome("three", 0.75, own=2)]
    comparison = Comparison(found)
    first, second = (over_fits({1: one.draws["image_auroc"]}) for one in found[:2])
    assert first[1] > second[0]
    assert marks(comparison) == ["two"]
    assert f"| 0.830 [{second[0]:.3f}, {second[1]:.3f}]" in comparison.markdown()
    assert r"\textbf{0.830}" in comparison.latex()
    assert "[" not in comparison.latex().split("midrule")[1]  # means and deviations alone
    narrow = table_text(comparison.narrow_table())
    assert [line.split()[0] for line in narrow.splitlines() if "*" in line] == ["two"]
    row = next(csv.DictReader(io.StringIO(comparison.csv())))
    assert [float(row[f"image_auroc_{end}"]) for end in ("low", "high")] == pytest.approx(first)


def test_what_is_better_than_some_only_is_not_marked() -> None:
    assert marks(Comparison([outcome("one", 0.829), outcome("two", 0.83, own=1), outcome("three", 0.75, own=2)])) == []
    assert marks(Comparison([outcome("one", 0.83)])) == []  # nothing to compare it with


def test_rows_of_other_images_or_without_intervals_are_not_compared() -> None:
    for other in (
        outcome("one", 0.6, samples="other"),
        outcome("one", 0.6)._replace(draws={}),
        outcome("one", 0.6, samples=None),
    ):
        comparison = Comparison([other, outcome("two", 0.83, own=1)])
        assert marks(comparison) == []
        assert comparison.differences_table() is None
        assert comparison.differences_csv().count("\n") == 1


def test_differences_are_from_the_best_or_from_the_reference() -> None:
    found = [outcome("one", 0.80), outcome("two", 0.83, own=1), outcome("three", 0.75, own=2)]
    lines = {row["model"]: row for row in csv.DictReader(io.StringIO(Comparison(found).differences_csv()))}
    assert set(lines) == {"one", "three"}
    assert {row["less_model"] for row in lines.values()} == {"two"}
    assert float(lines["three"]["difference"]) == pytest.approx(-0.08)
    assert float(lines["three"]["low"]) < -0.08 < float(lines["three"]["high"]) < 0
    text = table_text(Comparison(found, reference="three").differences_table())
    (line,) = [line for line in text.splitlines() if " one " in line]
    assert "+0.050 [+0.0" in line
    assert "]*" in line
    assert any("three" in line and "reference" in line for line in text.splitlines())
    assert "+0.050 [+0.0" in Comparison(found, reference="three").markdown()


def test_fits_that_disagree_make_a_difference_unclear() -> None:
    base = [outcome("base", 0.80, fitted=False)]
    alike = [outcome("new", value, seed, own=seed) for seed, value in enumerate((0.829, 0.83, 0.831), 1)]
    apart = [outcome("new", value, seed, own=seed) for seed, value in enumerate((0.75, 0.83, 0.91), 1)]
    assert marks(Comparison([*base, *alike])) == ["new"]
    assert marks(Comparison([*base, *apart])) == []
    compared = difference([0.8], {None: 0.8 + SPREAD}, [0.8], {None: 0.8 + SPREAD})
    assert compared == (0, 0, 0)
    assert not compared.clear


def test_a_mean_over_sets_is_compared_by_draws_of_all_of_them() -> None:
    other = np.random.default_rng(5).normal(0, 0.02, DRAWS)
    found = [
        outcome("one", 0.80),
        outcome("two", 0.806, own=1),
        outcome("one", 0.80, data="btad", own=2, spread=other),
        outcome("two", 0.806, data="btad", own=3, spread=other),
    ]
    comparison = Comparison(found)
    rows = [row for row in csv.DictReader(io.StringIO(comparison.csv())) if row["model"] == "one"]
    width = [float(row["image_auroc_high"]) - float(row["image_auroc_low"]) for row in rows]
    assert width[2] == pytest.approx(width[0] / 2**0.5, rel=0.1)
    of_sets = list(csv.DictReader(io.StringIO(comparison.differences_csv())))
    spans = [float(row["high"]) - float(row["low"]) for row in of_sets]
    assert spans[2] < 0.85 * min(spans[:2])
    lacking = [*found[:3], found[3]._replace(draws={})]
    assert not any("mean of" in line for line in Comparison(lacking).differences_csv().splitlines())


def test_a_test_writes_its_intervals_and_draws(kit, capsys) -> None:
    paths = [f"d/ring/{kind}/{number}.png" for kind in ("good", "hole") for number in range(6)]
    results = {"image_auroc": 1.0, "pixel_auroc": 1.0, "pixel_aupro": None, "images": 12, "anomalous": 6}

    class Known(kit.model):
        pass

    Known.results = {"ring": results, "mean": {}}
    kit.trainer(ResultsWriter(overlays=0)).test(Known(), kit.data(kit.samples(*paths)), verbose=False)
    report = json.loads((kit.folder / "results.json").read_text())
    assert report["intervals"]["ring"] == report["intervals"]["mean"] == {
        "image_auroc": [1.0, 1.0],
        "pixel_auroc": [1.0, 1.0],
    }  # fmt: skip
    assert report["parameters"] == 1
    assert report["memory"]["bytes"] > 2**20
    draws = read_draws(kit.folder)
    assert {name: len(values) for name, values in draws.items()} == {"image_auroc": DRAWS, "pixel_auroc": DRAWS}
    said = capsys.readouterr().out
    assert [line.split()[:3] for line in said.splitlines() if "95 % from" in line] == [["95", "%", "from"]]
    assert "Image AUROC: no image was misranked, so resampling shows no spread." in said
    assert not separated({"mean": {"image_auroc": [0.9, 1.0]}})
    (kit.folder / FILE).write_bytes(b"cut")
    assert read_draws(kit.folder) == {}
    assert read_draws(kit.folder / "nowhere") == {}
