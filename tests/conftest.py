"""Tiny CLIPs written as open_clip folders, so that every test loads as a user's model loads."""

import gzip
import json
import os
import socket

import open_clip
import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.types import Batch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start; small tensors gain nothing
torch.set_num_threads(1)
os.environ.pop("COLUMNS", None)  # readline sets it for the processes of pytest-xdist; tests print to no terminal

settings.register_profile("any machine", deadline=None, max_examples=50)
settings.load_profile("any machine")


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cuda", help="where the tests marked gpu run: cuda, or cpu to try them without"
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Makes what a test printed text that can pass from one process to another (pytest-xdist), odd file names too."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def device(pytestconfig):
    """Where a test marked gpu runs what it compares with the CPU."""
    return pytestconfig.getoption("--device")


MERGES = ["s c", "sc r", "a t", "scr at", "c h</w>", "scrat ch</w>"]  # "scratch" becomes one token
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 6, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 512 + len(MERGES) + 2, "width": 24, "heads": 2, "layers": 3}


def build(embed_dim=20, vision=None, text=None, seed=0, **other):
    """Config and weights of a random tiny CLIP whose text tower is not all but zero."""
    config = {"embed_dim": embed_dim, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT | (text or {}), **other}
    torch.manual_seed(seed)
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    model = (open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP)(**arguments)
    for parameter in model.parameters():  # biases, norms and LayerScale start at constants: a test would not see them
        parameter.data += 0.05 * torch.randn_like(parameter)
    return config, model.eval()


def write_folder(folder, config, weights, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), dtype=torch.float32):
    """Write what `local-dir:` reads, with a vocabulary of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": list(mean), "std": list(std)}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file({key: value.to(dtype).contiguous() for key, value in weights.items()}, folder / "model.safetensors")
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(("#version\n" + "\n".join(MERGES)).encode()))
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def make_clip():
    return build


@pytest.fixture(scope="session")
def write_clip():
    return write_folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny CLIP as open_clip builds it, and the name by which the backbone finds it."""
    config, model = build()
    return model, write_folder(tmp_path_factory.mktemp("tiny"), config, model.state_dict())


@pytest.fixture
def backbone(tiny):
    return CLIPBackbone(tiny[1], image_size=32)


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def named(monkeypatch):
    """Make `tiny-clip` a model name of open_clip with the tags `gelu` and `quick`, whose weights nobody has."""
    config, model = build()
    tags = {tag: {"hf_hub": "nobody/tiny/", "mean": (0.1, 0.2, 0.3), "std": (1, 2, 4)} for tag in ("gelu", "quick")}
    tags["quick"]["quick_gelu"] = True
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-clip", config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", tags)
    return model, tags


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)  # the same sums on every machine


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Refuse every connection but those to this machine."""
    connect = socket.socket.connect

    def connect_here(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise OSError(f"A test reached for the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(scope="session")
def tiny_name(tmp_path_factory):
    """Name of a tiny CLIP with room for learned prompts: D = 16, 6 blocks, a grid of 4 x 4 patches at 32 pixels."""
    config, model = build(embed_dim=16, text={"context_length": 48})
    return write_folder(tmp_path_factory.mktemp("clip"), config, model.state_dict())


@pytest.fixture(scope="session")
def tiny_clip(tiny_name):
    return CLIPBackbone(tiny_name, image_size=32)


@pytest.fixture
def synthetic_batch():
    """Four images of two categories; the second and the fourth have a bright square, the fourth no mask."""
    image = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(3)) / 2
    mask = torch.zeros(4, 32, 32, dtype=torch.uint8)
    for i in (1, 3):
        image[i, :, 8:16, 8:16] = 1
        mask[i, 8:16, 8:16] = 1
    has_mask = torch.tensor([True, True, True, False])
    return Batch(
        image=image,
        mask=mask * has_mask[:, None, None],
        label=torch.tensor([0, 1, 0, 1]),
        has_mask=has_mask,
        size=torch.full((4, 2), 32),
        category=["nut", "nut", "metal_plate", "metal_plate"],
        defect=["good", "hole", "good", "hole"],
        path=[f"{i}.png" for i in range(4)],
    )
