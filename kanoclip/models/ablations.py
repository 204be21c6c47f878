"""The rows of the paper's ablation, each a choice of components over the same ``forward``."""

from __future__ import annotations

from kanoclip.adapter import NoAdapter
from kanoclip.backbone.attention import QKV
from kanoclip.interaction import NoInteraction
from kanoclip.losses import NoKD
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.prompts import EnsemblePrompts


class CLIPVVKnPLBiCMCI(KAnoCLIP):
    """KAnoCLIP without its Conv-Adapter."""

    name = "clip_vv_knpl_bicmci"
    own_adapter = NoAdapter


class CLIPVVKnPL(CLIPVVKnPLBiCMCI):
    """CLIP-VV with learned, knowledge-driven prompts."""

    name = "clip_vv_knpl"
    own_interaction = NoInteraction


class CLIPVV(CLIPVVKnPL):
    """CLIP with v-v attention and hand-written prompts; learns nothing."""

    name = "clip_vv"
    own_prompts = EnsemblePrompts
    own_kd_loss = NoKD


class CLIP(CLIPVV):
    """CLIP as it is with hand-written prompts: the training-free baseline; learns nothing."""

    name = "clip"
    own_attention = QKV
