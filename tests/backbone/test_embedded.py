import pytest
import torch

from kanoclip.backbone import embedded
from kanoclip.backbone.attention import VV
from kanoclip.backbone.embedded import EmbeddedBackbone

SHIPPED = (embedded.FOLDER / "model.safetensors").is_file()


@pytest.fixture
def folder(tmp_path, monkeypatch, make_clip, write_clip):
    config, model = make_clip()
    write_clip(tmp_path, config, model.state_dict(), dtype=torch.float16)
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    return model


def test_half_precision_weights_are_read_as_float32(folder, images):
    backbone = EmbeddedBackbone(image_size=32)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    torch.testing.assert_close(backbone.visual.proj, folder.visual.proj.half().float())
    assert backbone.description == "kanoclip embedded"
    assert backbone(images, VV()).grid == (4, 4)


def test_levels_size_and_positions_can_be_chosen(folder):
    backbone = EmbeddedBackbone(image_size=64, levels=[1, 6], position="bilinear")
    assert backbone.levels == [1, 6]
    assert backbone.position.shape == (65, 32)


def test_a_package_without_its_weights_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected model.safetensors.*pip install --force-reinstall"):
        EmbeddedBackbone()


@pytest.mark.skipif(not SHIPPED, reason="the weights are not there yet")
def test_the_shipped_weights_load_and_match_texts_to_images_of_their_size():
    backbone = EmbeddedBackbone()
    features = backbone(torch.rand(1, 3, 128, 128), VV())
    assert features.patches.shape[-1] == backbone.encode_text(["a scratch on wood"]).shape[-1] == backbone.dim
    assert features.grid == (128 // backbone.patch_size,) * 2
    assert backbone.depth in backbone.levels
    assert sum(file.stat().st_size for file in embedded.FOLDER.iterdir()) < 12e6


@pytest.mark.skipif(not SHIPPED, reason="the weights are not there yet")
def test_the_shipped_vocabulary_fits_the_token_table():
    backbone = EmbeddedBackbone()
    assert backbone.text.tokenizer.vocab_size == backbone.text.token_embedding.num_embeddings
    assert backbone.text.tokenizer.eot_token_id == backbone.text.tokenizer.vocab_size - 1
