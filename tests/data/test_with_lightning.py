from __future__ import annotations

from pathlib import Path

import lightning
import torch

from kanoclip.data.sets.folder import Folder
from kanoclip.types import Batch


class Recorder(lightning.LightningModule):
    """Trains nothing, and writes down what it is given."""

    image_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[str], float]] = []

    def training_step(self, batch: Batch) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.path, float(batch.image.mean())))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def predict_step(self, batch: Batch) -> list[str]:
        return [Path(path).name for path in batch.path]


def trainer(epochs: int = 1) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_a_resumed_fit_sees_what_the_unbroken_one_would_have(write, picture, tmp_path):
    for number in range(9):
        write(f"abnormal/{number}.png", picture + number)

    def data() -> Folder:
        return Folder(root=str(tmp_path), augment=True, batch_size=4, num_workers=0)

    whole, begun, resumed = Recorder(), Recorder(), Recorder()
    trainer(3).fit(whole, data())
    first = trainer(1)
    first.fit(begun, data())
    first.save_checkpoint(tmp_path / "a.ckpt")
    trainer(3).fit(resumed, data(), ckpt_path=tmp_path / "a.ckpt")
    assert begun.seen + resumed.seen == whole.seen
    assert [epoch for epoch, _, _ in whole.seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_predict_goes_round_a_batch_that_cannot_be_read(write, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    write("b.png", 5)
    write("c.png", 5)
    data = Folder(root=str(tmp_path), batch_size=1, num_workers=0)
    assert trainer().predict(Recorder(), data) == [["b.png"], ["c.png"]]
    assert data.unreadable == [(str(tmp_path / "a.png"), "it is not an image. Replace the file or remove it.")]
