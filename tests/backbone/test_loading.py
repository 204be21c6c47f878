import json
import logging
import shutil
import socket
import sys
import time
import types

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from kanoclip.backbone import loading
from kanoclip.backbone.attention import QKV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.loading import BackboneUnavailableError, load
from kanoclip.types import KanoclipError


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)


def test_no_network_is_one_error_within_seconds_that_says_what_to_do(empty_cache, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    start = time.monotonic()
    with pytest.raises(BackboneUnavailableError) as caught:
        CLIPBackbone("ViT-L-14-336", "openai")
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert message.startswith(
        "The weights of ViT-L-14-336 openai are not on this machine and could not be downloaded ("
    )
    assert "Connection refused" in message
    assert "--model.backbone.pretrained /path/to/file.safetensors" in message
    assert "--model.backbone embedded" in message


@pytest.mark.parametrize("name", ["ViT-B-32", "hf-hub:nobody/nothing"])
def test_a_server_that_never_answers_is_given_up(empty_cache, monkeypatch, name):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(loading, "TIMEOUT", 0.2)
        with pytest.raises(BackboneUnavailableError, match=r"did not answer within 0 s|timed out"):
            CLIPBackbone(name, "openai")


def test_offline_mode_is_named_as_the_reason(empty_cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneUnavailableError, match="HF_HUB_OFFLINE is set"):
        CLIPBackbone("ViT-B-32", "openai")


def test_a_download_that_breaks_is_the_same_error(empty_cache, named, monkeypatch):
    def broken(recipe):
        raise FileNotFoundError("connection reset\nlong traceback")

    monkeypatch.setattr(loading, "_ask", lambda address: None)
    monkeypatch.setattr(open_clip, "download_pretrained", broken)
    with pytest.raises(BackboneUnavailableError, match=r"tiny-clip gelu .*\(connection reset"):
        CLIPBackbone("tiny-clip", "gelu", 32)


def test_weights_in_the_cache_are_used_without_asking_the_network(empty_cache, named, monkeypatch, tmp_path):
    snapshot = tmp_path / "cache" / "models--nobody--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    save_file(named[0].state_dict(), snapshot / "open_clip_model.safetensors")
    monkeypatch.setattr(loading, "_ask", lambda address: pytest.fail(f"asked {address}"))
    backbone = CLIPBackbone("tiny-clip", "gelu", 32)
    torch.testing.assert_close(backbone.visual.proj, named[0].visual.proj)
    assert backbone.description == "tiny-clip gelu"
    assert backbone.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert backbone.std.flatten().tolist() == [1, 2, 4]


def test_the_tag_decides_the_activation(named, monkeypatch, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(named[0].state_dict(), path)
    monkeypatch.setattr(loading, "_download", lambda recipe, name, tag: str(path))
    activation = {tag: CLIPBackbone("tiny-clip", tag, 32).visual.transformer.resblocks[0].mlp.gelu for tag in named[1]}
    assert isinstance(activation["gelu"], torch.nn.GELU)
    assert type(activation["quick"]).__name__ == "QuickGELU"


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "ckpt"])
def test_a_local_file_gives_the_same_features_as_open_clip(named, tmp_path, images, suffix):
    path = tmp_path / f"weights.{suffix}"
    state = named[0].state_dict()
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if suffix == "ckpt" else state, path)
    backbone = CLIPBackbone("tiny-clip", str(path), 32)
    with torch.no_grad():
        expected = named[0].encode_image((images - backbone.mean) / backbone.std, normalize=True)
    torch.testing.assert_close(backbone(images, QKV()).cls, expected, atol=1e-6, rtol=0)
    assert backbone.description == f"tiny-clip {path}"


def test_a_local_file_has_the_activation_that_all_tags_of_its_name_agree_on(named, tmp_path, caplog):
    path = tmp_path / "w.safetensors"
    save_file(named[0].state_dict(), path)
    with caplog.at_level(logging.WARNING):
        CLIPBackbone("tiny-clip", str(path), 32)
    assert "For OpenAI's own weights use --model.backbone.name tiny-clip-quickgelu." in caplog.text
    del named[1]["gelu"]
    backbone = CLIPBackbone("tiny-clip", str(path), 32)
    assert type(backbone.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def colours(path, caplog):
    caplog.clear()
    backbone = CLIPBackbone("tiny-clip", str(path), 32)
    return backbone.mean.flatten().tolist(), caplog.text


def test_a_local_file_has_the_colours_of_its_tag_or_those_that_all_tags_share(named, tmp_path, caplog):
    named[1]["laion_2b"] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    for name in ("w.safetensors", "tiny-Laion_2B.safetensors", "tiny-gelu-quick.safetensors"):
        save_file(named[0].state_dict(), tmp_path / name)
    mean, told = colours(tmp_path / "w.safetensors", caplog)
    assert mean == pytest.approx(loading.OPENAI["mean"])
    assert "w.safetensors is read with OpenAI's mean and std of colours. If it is gelu or quick or laion_2b" in told
    assert colours(tmp_path / "tiny-Laion_2B.safetensors", caplog) == ([0.5, 0.5, 0.5], "")
    assert "OpenAI's mean and std" in colours(tmp_path / "tiny-gelu-quick.safetensors", caplog)[1]  # which of them?
    del named[1]["laion_2b"]
    mean, told = colours(tmp_path / "w.safetensors", caplog)
    assert mean == pytest.approx([0.1, 0.2, 0.3])
    assert "colours" not in told


def test_the_default_backbones_file_is_read_with_openais_activation(monkeypatch, tmp_path):
    path = tmp_path / "w.safetensors"
    path.touch()
    asked = {}
    monkeypatch.setattr(open_clip, "create_model", lambda *names, **how: asked.update(how))
    loading.load("ViT-L-14-336", str(path))
    assert asked == {"quick_gelu": True}


def test_null_weights_are_random_and_follow_the_seed(named):
    def weights(seed):
        torch.manual_seed(seed)
        return CLIPBackbone("tiny-clip", None, 32)

    assert weights(1).fingerprint == weights(1).fingerprint != weights(2).fingerprint
    assert weights(1).description == "tiny-clip random weights"


def test_loading_leaves_the_root_logger_as_it_was(named):
    handlers = list(logging.getLogger().handlers)
    CLIPBackbone("tiny-clip", None, 32)
    assert logging.getLogger().handlers == handlers


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"Unknown CLIP model 'vit-l14-336'. Did you mean 'ViT-L-14-336'\? Known: .*RN50"
    ):
        CLIPBackbone("vit-l14-336")


def test_openais_slash_is_understood():
    with pytest.raises(ValueError, match=r"^ViT-B-32 has no weights"):
        CLIPBackbone("ViT-B/32", "none")


def test_an_unknown_tag_is_answered_with_the_tags_of_that_model():
    with pytest.raises(
        ValueError, match=r"ViT-L-14-336 has no weights called 'openay'. Did you mean 'openai'\? Known: openai"
    ):
        CLIPBackbone("ViT-L-14-336", "openay")


def test_a_path_without_a_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No weights at .*no\.pt: .*--model.backbone embedded"):
        CLIPBackbone("ViT-B-32", str(tmp_path / "no.pt"))


def test_a_file_of_another_model_is_refused(named, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"visual.proj": torch.zeros(3, 3)}, path)
    with pytest.raises(ValueError, match=r"w.safetensors does not hold weights of tiny-clip \(.*--model.backbone.name"):
        CLIPBackbone("tiny-clip", str(path), 32)


def test_a_file_that_could_run_code_is_refused(named, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(named[0], path)  # the whole module, pickled
    with pytest.raises(ValueError, match=r"does not hold weights of tiny-clip \(Weights only load failed"):
        CLIPBackbone("tiny-clip", str(path), 32)


def test_openais_torchscript_archive_is_refused_with_a_command_that_converts_it(named, tmp_path, monkeypatch):
    path = tmp_path / "ViT.pt"
    torch.jit.save(torch.jit.trace(named[0].visual.ln_post, torch.zeros(1, 32)), path)
    with pytest.raises(ValueError, match=r"take its tensors out once with: python -c") as caught:
        CLIPBackbone("tiny-clip", str(path), 32)
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).split('python -c "')[1].rstrip('"'), {})
    assert set(loading.open_clip.factory.load_state_dict("clip.safetensors")) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("RN50", "a ResNet"),
        ("convnext_base", "timm's convnext_base"),
        ("coca_ViT-B-32", "a CoCa"),
        ("ViT-L-14-CLIPA", "not the class token"),
        ("nllb-clip-base", "Hugging Face's facebook/nllb"),
    ],
)
def test_towers_that_cannot_be_used_are_refused_before_any_download(monkeypatch, name, why):
    monkeypatch.setattr(loading, "_ask", lambda address: pytest.fail(f"asked {address}"))
    with pytest.raises(ValueError, match=rf"{name} cannot be the backbone: .*{why}.*ViT-L-14-336"):
        CLIPBackbone(name, open_clip.list_pretrained_tags_by_model(name)[0])


@pytest.mark.parametrize("tower", ["vision_cfg", "text_cfg"])
def test_blocks_other_than_clips_are_refused(named, tower):
    open_clip.factory._MODEL_CONFIGS["tiny-clip"][tower]["qk_norm"] = True
    with pytest.raises(ValueError, match="its blocks are not CLIP's plain ones"):
        CLIPBackbone("tiny-clip", None, 32)
    del open_clip.factory._MODEL_CONFIGS["tiny-clip"][tower]["qk_norm"]


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(BackboneUnavailableError, match=r"^local-dir:/no/such cannot be read \(.*with open_clip_config"):
        CLIPBackbone("local-dir:/no/such")


def test_a_tokenizer_never_runs_code_of_its_model(tiny, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny[1].removeprefix("local-dir:"), folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    asked = {}
    fake = types.SimpleNamespace(from_pretrained=lambda name, **options: asked.update(options))
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoTokenizer=fake))
    load(f"local-dir:{folder}", None)
    assert asked["trust_remote_code"] is False
    assert asked["local_files_only"] is True


@pytest.mark.parametrize("content", ["{}", "[]", '{"model_cfg": {"vision_cfg": 1}}'])
def test_a_folder_whose_config_is_none_is_told(tmp_path, content) -> None:
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(KanoclipError, match=r"local-dir:.*open_clip_config\.json"):
        load(f"local-dir:{tmp_path}", None)


def test_a_folder_given_as_weights_is_told(named, tmp_path) -> None:
    with pytest.raises(KanoclipError, match=r"is a folder, .*given as --model\.backbone\.name local-dir:"):
        load("tiny-clip", str(tmp_path))
