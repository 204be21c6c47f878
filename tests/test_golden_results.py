"""Numbers of a few models on a few images: whoever changes them must raise ``RESULTS_VERSION``.

Nobody remembers to raise a version by hand, and then a benchmark takes the results of older code for its own. After
raising it in ``kanoclip/outputs/identity.py``, write the numbers anew: ``python tests/test_golden_results.py``.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import SurfacesDefects
from kanoclip.data.loading import collate
from kanoclip.metrics import ImageMetrics, PixelMetrics
from kanoclip.models.ablations import CLIP, CLIPVV
from kanoclip.models.baselines import LocalStats
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.rivals.anomalyclip import AnomalyCLIP
from kanoclip.models.rivals.april_gan import AprilGAN
from kanoclip.models.rivals.winclip import WinCLIP
from kanoclip.outputs.identity import RESULTS_VERSION

FILE = Path(__file__).parent / "golden" / "results.json"
MODELS = {kind.name: kind for kind in (KAnoCLIP, CLIP, CLIPVV, WinCLIP, AprilGAN, AnomalyCLIP, LocalStats)}


def numbers(name: str) -> dict[str, Any]:
    """Metrics and scores of a model whose heads are drawn, on eight images."""
    data = SurfacesDefects(category=["gear", "pill"], images=4, num_workers=0, image_size=128)
    torch.manual_seed(0)
    model = MODELS[name]() if name == "local_stats" else MODELS[name](backbone=EmbeddedBackbone())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    dataset = data.dataset("test")
    batch = collate([dataset[i] for i in range(len(dataset))])
    with torch.no_grad():
        scores = model.eval()(batch)
    image, pixel = ImageMetrics(), PixelMetrics()
    image.update(scores.image_score, batch.label)
    pixel.update(scores.anomaly_map, batch.mask)
    metrics = {f"image_{k}": v for k, v in image.compute().items()} | {
        f"pixel_{k}": v for k, v in pixel.compute().items()
    }
    return {
        "metrics": {k: round(float(v), 5) for k, v in metrics.items()},
        "scores": [round(float(score), 5) for score in scores.image_score],
        "maps": [round(float(mean), 5) for mean in scores.anomaly_map.flatten(1).mean(1)],
    }


@pytest.mark.parametrize("name", MODELS)
def test_numbers_that_changed_have_a_version_of_their_own(name) -> None:
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    assert golden["version"] == RESULTS_VERSION, "the numbers of this version are not written yet: see above"
    expected, found = golden[name], numbers(name)
    why = "numbers changed: raise RESULTS_VERSION, see above"
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-3), why
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-4), why  # another torch rounds otherwise
    assert found["maps"] == pytest.approx(expected["maps"], abs=1e-4), why


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(
        json.dumps({"version": RESULTS_VERSION} | {name: numbers(name) for name in MODELS}, indent=1) + "\n"
    )
