"""The small CLIP that comes with the package, so that everything runs without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.loading import LOCAL_DIR
from kanoclip.types import MissingError

# open_clip_config.json, model.safetensors (float16) and bpe.txt.gz, as open_clip itself reads them
FOLDER = Path(__file__).parent / "embedded"
LEVELS = [3, 5]


class EmbeddedBackbone(CLIPBackbone):
    """A miniature of CLIP, trained on drawn surfaces and parts: for learning, tests and demonstrations.

    It has never seen a photograph. For work on real images use the backbone ``clip``.

    Args:
        image_size: Side of the square image in pixels, a multiple of the patch size.
        levels: Blocks after which patches are read, counted from 1, of 5. null: 3 and 5.
        position: How the position embedding is resized for another image size than that of the pretraining: bicubic
            with antialias, or bilinear without.
        levels_at: Where patches are read, as in ``CLIPBackbone``.

    Raises:
        MissingError: If the package was installed without its weights.
        KanoclipError: If the sizes or levels do not fit.

    Reference:
        Ours.
    """

    def __init__(
        self,
        image_size: int = 128,
        levels: list[int] | None = None,
        position: Literal["bicubic", "bicubic_no_antialias", "bilinear"] = "bicubic",
        levels_at: Literal["joint", "norm", "block"] = "joint",
    ) -> None:
        if not (FOLDER / "model.safetensors").is_file():
            raise MissingError(
                f"No weights of the embedded backbone at {FOLDER}: expected model.safetensors, which comes with "
                f"kanoclip. Reinstall it with: pip install --force-reinstall --no-deps kanoclip"
            )
        super().__init__(f"{LOCAL_DIR}{FOLDER}", None, image_size, levels or LEVELS, position, levels_at=levels_at)
        self.description = "kanoclip embedded"
