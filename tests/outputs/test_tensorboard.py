import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kanoclip.outputs import ExampleMaps

PATHS = ["d/ring/good/1.png", "d/ring/hole/2.png", "d/nut/good/3.png", "d/nut/dent/4.png"]


@pytest.fixture
def images(kit):
    def run(held_out=(), **options):
        logger = TensorBoardLogger(kit.folder, name="", version="")
        model = kit.model()
        trainer = kit.trainer(ExampleMaps(3), logger=logger, max_epochs=2, log_every_n_steps=1, **options)
        trainer.fit(model, kit.data(kit.samples(*PATHS), held_out=kit.samples(*held_out)))
        events = EventAccumulator(str(kit.folder)).Reload()
        return {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}, model

    return run


def test_the_first_training_batch_is_shown_after_each_epoch(images):
    assert images()[0] == {"examples/training/0": [0, 1], "examples/training/1": [0, 1]}


def test_held_out_images_are_shown_too_each_category_and_label_once(images):
    found, _ = images([*PATHS, "d/nut/dent/5.png"])
    assert {tag: steps for tag, steps in found.items() if "validation" in tag} == {
        f"examples/validation/{i}": [0, 1] for i in range(3)
    }


def test_modes_are_left_as_they_were(images):
    _, model = images()
    assert model.training
    assert not model.frozen.training


def test_a_logger_without_images_is_left_alone(kit):
    kit.trainer(ExampleMaps(), max_epochs=1).fit(kit.model(), kit.data(kit.samples(*PATHS)))
    assert not list(kit.folder.rglob("events*"))
