"""A model whose map is the brightness of the image, and data of any samples, to try the callbacks in real runs."""

import signal
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from kanoclip.data.base import Sample
from kanoclip.types import ANOMALOUS, Batch, Scores

SIDE = 16


def make_batch(samples, size=(SIDE, SIDE)):
    """Normal images are black; anomalous ones have a white square, which is also their mask."""
    image = torch.zeros(len(samples), 3, SIDE, SIDE)
    label = torch.tensor([sample.label for sample in samples])
    image[label == ANOMALOUS, :, 4:8, 4:8] = 1
    return Batch(
        image=image,
        mask=(image[:, 0] > 0.5).byte(),
        label=label,
        has_mask=label >= 0,
        size=torch.tensor([size] * len(samples)),
        category=[sample.category for sample in samples],
        defect=[sample.defect for sample in samples],
        path=[sample.image for sample in samples],
    )


class Brightness(LightningModule):
    """Scores brightness; learns one number that changes nothing."""

    name = "brightness"
    auxiliary = "elsewhere"
    fitted_images = (100, 101)
    results = {  # noqa: RUF012
        "ring": {"image_auroc": 1.0, "pixel_auroc": float("nan"), "pixel_aupro": None, "images": 4, "anomalous": 2}
    }

    def __init__(self, stop_at=None):
        super().__init__()
        self.save_hyperparameters()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.frozen = torch.nn.Dropout().eval()
        self.stop_at = stop_at
        self.stop_with = KeyboardInterrupt

    def describe_components(self):
        return {"backbone": "none at all"}

    def forward(self, batch):
        brightness = batch.image.mean(1)
        return Scores(brightness, brightness.flatten(1).amax(1))

    def training_step(self, batch):
        return (self.weight**2).sum()

    def validation_step(self, batch):
        return self(batch)

    def test_step(self, batch):
        return self(batch)

    def predict_step(self, batch, batch_idx):
        if batch_idx == self.stop_at:
            raise self.stop_with
        return self(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Samples(LightningDataModule):
    """Serves samples, two a batch."""

    identity = "samples"
    seed = 5
    batch_size = 2

    def __init__(self, samples, size=(SIDE, SIDE), held_out=()):
        super().__init__()
        self.samples, self.size, self.held_out = samples, size, held_out

    @property
    def categories(self):
        return sorted({sample.category for sample in self.samples})

    def part(self, stage):
        return self.samples

    def image_digests(self, stage):
        return [*range(len(self.samples))]

    def samples_digest(self, stage):
        return f"{len(self.samples)} samples"

    def _loader(self, samples):
        return DataLoader(samples, batch_size=2, collate_fn=lambda found: make_batch(found, self.size))

    def train_dataloader(self):
        return self._loader(self.samples)

    def val_dataloader(self):
        return self._loader(self.held_out) if self.held_out else []

    test_dataloader = predict_dataloader = train_dataloader


def make_samples(*paths):
    """``ring/good/1.png`` is a normal ring, any other folder a kind of defect."""
    return [Sample(path, (), int("/good/" not in path), path.split("/")[-3], path.split("/")[-2]) for path in paths]


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """What a test of a callback needs."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # of another test

    def trainer(*callbacks, **options):
        quiet = {"logger": False, "enable_checkpointing": False, "barebones": False}
        return Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path / "run",
            callbacks=list(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            **(quiet | options),
        )

    handler = signal.getsignal(signal.SIGINT)
    yield SimpleNamespace(
        model=Brightness, data=Samples, samples=make_samples, batch=make_batch, trainer=trainer, folder=tmp_path / "run"
    )
    signal.signal(signal.SIGINT, handler)  # Lightning ignores Ctrl-C after the first one
