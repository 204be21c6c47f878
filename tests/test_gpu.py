"""What a GPU computes, against the CPU. Without a GPU they are skipped; ``--device cpu`` tries them there."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities import move_data_to_device
from safetensors.torch import load_file

from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import Surfaces, SurfacesAuxiliary
from kanoclip.metrics import ImageMetrics, PixelMetrics
from kanoclip.models.ablations import CLIPVV
from kanoclip.models.epoch import EpochMetrics
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.saving import FROZEN
from kanoclip.registry import NAMES, load_class
from kanoclip.types import Batch, Scores
from kanoclip.verbs.table import main

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[1]
SMALL = {"category": ["ring", "wood"], "images": 6, "batch_size": 4, "num_workers": 0}
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_aupro")


@pytest.fixture(autouse=True)
def settings_as_before(monkeypatch, tmp_path):
    """Undo what Lightning and a test choose for all of torch, and give each test a cache of its own."""
    monkeypatch.setenv("KANOCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when cuBLAS starts
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark


def trainer(device: str, folder: Path, **options) -> Trainer:
    """The trainer of the command, without what it writes."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"max_epochs": 1, "deterministic": "warn", **quiet} | options
    return Trainer(accelerator=accelerator(device), devices=1, default_root_dir=folder, **options)


def accelerator(device: str) -> str:
    return "gpu" if device == "cuda" else device


def build(kind=KAnoCLIP, **options):
    torch.manual_seed(0)
    return kind(backbone=EmbeddedBackbone(), **options)


def heads(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.cpu().clone() for name, value in model.state_dict().items() if not name.startswith(FROZEN)}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


class Kept(Callback):
    """Keeps the losses of a fit and the scores of a test."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.scores: list[Scores] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.scores.append(outputs)

    @property
    def maps(self) -> torch.Tensor:
        return torch.cat([one.anomaly_map.float().cpu() for one in self.scores])

    @property
    def image_scores(self) -> torch.Tensor:
        return torch.cat([one.image_score.float().cpu() for one in self.scores])


def fit(device: str, folder: Path, model=None, **options):
    """Fit on drawings; return the model, its losses and the trainer."""
    seed_everything(5, verbose=False)
    where = {name: options.pop(name) for name in ("ckpt_path", "weights_only") if name in options}
    cache = options.pop("cache", False)
    kept, model = Kept(), model or build()
    used = trainer(device, folder, callbacks=[kept], **options)
    used.fit(model, SurfacesAuxiliary(**SMALL, cache=cache), **where)
    return model, kept.losses, used


def scored(device: str, folder: Path, model, images: int = 4, cache: bool = False, **options) -> Kept:
    """Test on drawings; the metrics are in the model."""
    kept = Kept()
    data = Surfaces(images=images, num_workers=0, cache=cache)
    trainer(device, folder, callbacks=[kept], **options).test(model, data, verbose=False)
    return kept


@pytest.fixture(scope="module")
def fitted(device, tmp_path_factory):
    """Checkpoint of a fit on the device, its model and its losses."""
    folder = tmp_path_factory.mktemp("fitted")
    model, losses, used = fit(device, folder)
    used.save_checkpoint(folder / "fit.ckpt")
    torch.use_deterministic_algorithms(False)
    return folder / "fit.ckpt", heads(model), losses


def loaded(checkpoint: Path):
    return KAnoCLIP.load_from_checkpoint(checkpoint, map_location="cpu", backbone=EmbeddedBackbone())


def drawn_batch(device: str) -> Batch:
    data = Surfaces(images=2, image_size=128, batch_size=4, num_workers=0)
    return move_data_to_device(next(iter(data.test_dataloader())), torch.device(device))


@pytest.mark.parametrize("name", NAMES["model"])
def test_every_model_scores_on_a_gpu_as_on_a_cpu(name, device) -> None:
    kind = load_class(NAMES["model"][name])
    torch.manual_seed(0)
    model = (kind() if name == "local_stats" else kind(backbone=EmbeddedBackbone())).eval()
    with torch.inference_mode():
        wanted = model(drawn_batch("cpu"))
        found = model.to(device)(drawn_batch(device))
    assert found.anomaly_map.device.type == found.image_score.device.type == device
    # local_stats takes the root of a difference that is nearly 0; april_gan's layers have random weights, and their
    # cosines over a temperature of 0.01 turn 1e-5 into 1e-3
    close = {"atol": {"local_stats": 2e-2, "april_gan": 2e-3}.get(name, 5e-4), "rtol": 0}
    torch.testing.assert_close(found.anomaly_map.cpu(), wanted.anomaly_map, **close)
    torch.testing.assert_close(found.image_score.cpu(), wanted.image_score, **close)


@pytest.mark.parametrize("precision", ["tf32", "bf16-mixed", "16-mixed"])
def test_less_precision_moves_maps_scores_and_metrics_little(precision, fitted, device, tmp_path) -> None:
    exact, rough = loaded(fitted[0]), loaded(fitted[0])
    wanted = scored(device, tmp_path, exact)
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
        found = scored(device, tmp_path, rough)
    else:
        found = scored(device, tmp_path, rough, precision=precision)
    away = (found.maps - wanted.maps).abs()
    assert float(away.mean()) < 1e-3
    assert float(away.max()) < 0.05
    assert float((found.image_scores - wanted.image_scores).abs().max()) < 0.05
    for name in METRICS:
        assert rough.results["mean"][name] == pytest.approx(exact.results["mean"][name], abs=0.01), name


def test_a_gpu_finds_the_losses_and_metrics_of_a_cpu(fitted, device, tmp_path) -> None:
    model, losses, _ = fit("cpu", tmp_path)
    assert fitted[2] == pytest.approx(losses, abs=2e-3)
    for name, weight in heads(model).items():  # Adam turns a gradient near 0 by its sign into a step of lr
        assert float((fitted[1][name] - weight).abs().mean()) < 2e-4, name
    there, here = loaded(fitted[0]), loaded(fitted[0])
    found, wanted = scored(device, tmp_path, there), scored("cpu", tmp_path, here)
    torch.testing.assert_close(found.maps, wanted.maps, atol=5e-4, rtol=0)  # as the models above
    torch.testing.assert_close(found.image_scores, wanted.image_scores, atol=5e-4, rtol=0)
    for category, metrics in here.results.items():
        assert there.results[category] == pytest.approx(metrics, abs=2e-3)


@pytest.mark.parametrize("leaves", ["device", "cpu"])
def test_a_checkpoint_goes_from_a_gpu_to_a_cpu_and_back(leaves, device, tmp_path) -> None:
    first, second = (device, "cpu") if leaves == "device" else ("cpu", device)
    model, _, used = fit(first, tmp_path)
    used.save_checkpoint(tmp_path / "half.ckpt")
    arrived = KAnoCLIP.load_from_checkpoint(
        tmp_path / "half.ckpt", map_location=torch.device(second), backbone=EmbeddedBackbone()
    )
    assert {weight.device.type for weight in arrived.parameters() if weight.requires_grad} == {second}
    equal(heads(model), heads(arrived))
    assert sorted(arrived.fitted_images) == sorted(model.fitted_images)
    goes_on = {"max_epochs": 2, "ckpt_path": tmp_path / "half.ckpt", "weights_only": True}
    on_the_other, losses, _ = fit(second, tmp_path, **goes_on)
    on_the_same, wanted, _ = fit(first, tmp_path, **goes_on)
    assert len(losses) == len(wanted) == 3
    assert losses == pytest.approx(wanted, abs=2e-3)
    for name, weight in heads(on_the_same).items():
        assert float((heads(on_the_other)[name] - weight).abs().mean()) < 2e-4, name


def test_a_fit_with_one_seed_is_the_same_twice_and_when_it_is_resumed(device, tmp_path) -> None:
    whole, losses, _ = fit(device, tmp_path, max_epochs=2)
    again, same, used = fit(device, tmp_path, max_epochs=1)
    used.save_checkpoint(tmp_path / "half.ckpt")
    goes_on = {"max_epochs": 2, "ckpt_path": tmp_path / "half.ckpt", "weights_only": True}
    again, rest, _ = fit(device, tmp_path, build(), **goes_on)
    assert [*same, *rest] == losses
    equal(heads(whole), heads(again))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_fit_with_autocast_goes_the_way_of_one_without_and_can_be_resumed(
    precision, fitted, device, tmp_path
) -> None:
    model, losses, used = fit(device, tmp_path, precision=precision)
    assert losses[0] == pytest.approx(fitted[2][0], rel=0.01)
    # A step whose gradients overflow float16 is left out: with a first scale of 65536 the fit is one step behind.
    assert losses == pytest.approx(fitted[2], rel=0.1 if precision == "bf16-mixed" else 0.2)
    assert all(weight.isfinite().all() for weight in heads(model).values())
    used.save_checkpoint(tmp_path / "half.ckpt")
    goes_on = {"max_epochs": 2, "ckpt_path": tmp_path / "half.ckpt", "weights_only": True}
    _, more, _ = fit(device, tmp_path, precision=precision, **goes_on)
    assert np.isfinite(more).all()


def test_cached_features_of_a_gpu_are_those_of_a_cpu(device, tmp_path, monkeypatch) -> None:
    files, models = {}, {}
    for place, where in (("cpu", "cpu"), ("there", device)):
        monkeypatch.setenv("KANOCLIP_CACHE", str(tmp_path / place))
        models[place] = build(CLIPVV)
        scored(where, tmp_path, models[place], images=2, cache=True)
        files[place] = {str(file.relative_to(tmp_path / place)): file for file in (tmp_path / place).rglob("*.safet*")}
    assert files["cpu"].keys() == files["there"].keys()
    assert len(files["cpu"]) == 2 * 7
    for name, file in files["cpu"].items():
        wanted, found = load_file(file), load_file(files["there"][name])
        for field in ("pixels", "numbers"):
            assert torch.equal(found[field], wanted[field])
        for field in ("patches", "cls"):  # half precision: the last digit of numbers below 1
            torch.testing.assert_close(found[field].float(), wanted[field].float(), atol=1e-3, rtol=0)
    plain = build(CLIPVV)
    wanted = scored(device, tmp_path, plain, images=2)
    found = scored(device, tmp_path, models["there"], images=2, cache=True)
    torch.testing.assert_close(found.maps, wanted.maps, atol=2e-2, rtol=0)


def test_a_fit_from_the_cache_has_the_losses_of_one_without(device, tmp_path, fitted) -> None:
    _, losses, _ = fit(device, tmp_path, cache=True)
    assert losses == pytest.approx(fitted[2], abs=5e-3)


def test_metrics_of_a_gpus_tensors_are_equal_to_the_last_digit(device) -> None:
    generator = torch.Generator().manual_seed(3)
    maps, score = torch.rand(12, 40, 40, generator=generator), torch.rand(12, generator=generator)
    mask = torch.zeros(12, 40, 40, dtype=torch.uint8)
    mask[::2, 5:15, 8:30], mask[::4, 30:34, 2:9] = 1, 1
    label, known = mask.flatten(1).amax(1).long(), torch.ones(12, dtype=torch.bool)
    found = []
    for place in ("cpu", device):
        image, pixel = ImageMetrics().to(place), PixelMetrics().to(place)
        epoch = EpochMetrics(torch.device(place), ["nut"])
        for part in (slice(0, 5), slice(5, 12)):
            words = ["nut", "pill"] * 6
            one, two, three, four = (values[part].to(place) for values in (maps, score, mask, label))
            pixel.update(one, three)
            image.update(two, four)
            size = torch.full((len(two), 2), 40, device=place)
            lists = words[part], [""] * len(two), [""] * len(two)
            epoch.update(Batch(one, three, four, known[part].to(place), size, *lists), Scores(one, two))
        values = {name: float(value) for metric in (image, pixel) for name, value in metric.compute().items()}
        found.append((values, epoch.compute()))
    assert found[0] == found[1]


def test_the_command_fits_and_validates_by_ddp_in_a_world_of_one(device, tmp_path) -> None:
    words = "fit --data surfaces_auxiliary --data.images 4 --data.holdout 0.5 --data.num_workers 2 --model.backbone"
    words += " embedded --trainer.max_epochs 1 --trainer.strategy ddp --trainer.devices 1"
    words += f" --trainer.enable_progress_bar false --trainer.accelerator {accelerator(device)}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kanoclip", *words.split()]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout[-1500:] + run.stderr[-1500:]
    assert list(tmp_path.rglob("last.ckpt"))


def test_the_command_fits_validates_tests_and_predicts_on_a_gpu(device, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for number in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), generator.integers(0, 255, (90, 70, 3), np.uint8))
    where = ["--trainer.accelerator", accelerator(device), "--trainer.devices", "1", "--data.num_workers", "0"]
    seen = ["--data", "surfaces_auxiliary", "--data.images", "4", "--data.category", "wood", "--data.holdout", "0.5"]
    for words in (
        ["fit", *seen, "--model.backbone", "embedded", "--trainer.max_epochs", "1"],
        ["validate", *seen],
        ["test", "--data", "surfaces", "--data.images", "2", "--trainer.precision", "bf16-mixed"],
        ["predict", "--data", "folder", "--data.root", "photos"],
    ):
        code = main([*words, *where])
        assert code == 0, f"{words[0]}: {capsys.readouterr().err}"
    assert list(tmp_path.rglob("results.json"))
    assert len(next(iter(tmp_path.rglob("predictions.csv"))).read_text().splitlines()) == 4
