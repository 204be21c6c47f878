"""The rows of the paper's ablation, and the whole without one part: each a choice of components, never a forward."""

from __future__ import annotations

from kanoclip.backbone.attention import QKV
from kanoclip.heads.adapter import NoAdapter
from kanoclip.heads.interaction import NoInteraction
from kanoclip.heads.losses import NoKD
from kanoclip.heads.prompts import EnsemblePrompts
from kanoclip.models.kanoclip import KAnoCLIP


class CLIPVVKnPLBiCMCI(KAnoCLIP):
    """CLIP-VV, KnPL and Bi-CMCI: the last rung below KAnoCLIP."""

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
    """CLIP as it is with hand-written prompts: the training-free baseline; learns nothing.

    Not the "CLIP" of published tables: it has prompts of our own words, the mean of global probability and map as image
    score, and a blurred map.
    """

    name = "clip"
    own_attention = QKV


class KAnoCLIPNoVV(KAnoCLIP):
    """KAnoCLIP without CLIP-VV: patches from CLIP's own attention."""

    name = "kanoclip_no_vv"
    own_attention = QKV


class KAnoCLIPNoKnPL(KAnoCLIP):
    """KAnoCLIP without KnPL: hand-written prompts, and so no knowledge loss either."""

    name = "kanoclip_no_knpl"
    own_prompts = EnsemblePrompts
    own_kd_loss = NoKD


class KAnoCLIPNoKD(KAnoCLIP):
    """KAnoCLIP without the knowledge loss: prompts are learned from the auxiliary images alone."""

    name = "kanoclip_no_kd"
    own_kd_loss = NoKD


class KAnoCLIPNoBiCMCI(KAnoCLIP):
    """KAnoCLIP without Bi-CMCI: patches and texts do not attend to each other."""

    name = "kanoclip_no_bicmci"
    own_interaction = NoInteraction


class KAnoCLIPNoAdapter(CLIPVVKnPLBiCMCI):
    """KAnoCLIP without its Conv-Adapter: the same model as clip_vv_knpl_bicmci."""

    name = "kanoclip_no_adapter"
