"""Train the small CLIP that ships in ``kanoclip/backbone/embedded`` on drawn images and captions.

    python benchmarks/train_embedded.py --minutes 90 --output runs/embedded

Four terms, summed. None sees the mask of a defect, and none sees an unseen category or kind of defect at all:

* image and caption agree (CLIP, with every caption that is true of an image as a positive; each batch holds the same
  scene intact and damaged, so that captions differ in the state alone);
* patches agree with the word of what they show, the part or its background, from the part's outline;
* patches agree with the word of their mean colour;
* self-supervised: patches tell whether they were replaced (by a piece of another image, a shifted piece of the same,
  a colour, a blur), through two free vectors that are thrown away afterwards. So local oddness is in the features, but
  no text means it: that is left for the prompts, the interaction and the adapter to learn.

The last three act on the plain and on the v-v path of the tapped levels alike, so that neither is favoured.
"""

from __future__ import annotations

import gzip
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from embedded_captions import (
    ANOMALOUS,
    BACKGROUND,
    COLOURS,
    DEFECTS,
    GENERIC,
    NAMES,
    NORMAL,
    TEMPLATES,
    caption,
    merges,
    nearest_colour,
)
from embedded_scenes import jobs, recoloured, replace, scene
from jsonargparse import auto_cli
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kanoclip.data.drawn.materials import SIZE

PATCH, LAYERS, LEVELS, FIRST, TAU = 8, 5, (2, 3, 4, 5), 2, 0.07
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


class Pool:
    """Scenes drawn once; batches are random crops, flips, turns and recolourings of them."""

    def __init__(self, count: int, seed: int, workers: int, invented: float) -> None:
        rng = np.random.default_rng(seed)
        self.jobs = jobs(count, rng, invented)
        with ProcessPoolExecutor(workers) as pool:
            scenes = list(pool.map(scene, self.jobs, chunksize=64))
        self.intact, self.damaged, self.part, self.below = map(np.stack, zip(*scenes, strict=True))
        self.rng = rng

    def batch(self, count: int, size: int) -> dict:
        """Return ``count`` scenes intact, damaged and with regions replaced, cut to ``size`` pixels."""
        rng, last, corners = self.rng, (SIZE - size) // PATCH, []
        chosen = rng.choice(len(self.jobs), count, replace=False)
        images, captions, facts, words, replaced = [], [], [], [], []
        for i in chosen:
            _, category, defect = self.jobs[i]
            differs = np.abs(self.intact[i].astype(np.int16) - self.damaged[i]).max(-1) > 20
            corner = rng.integers(0, last + 1, 2)
            if rng.random() < 0.75 and differs.any():  # most crops show the damage
                spot = rng.permutation(np.argwhere(differs))[0] - rng.integers(8, size - 8, 2)
                corner = np.clip(np.rint(spot / PATCH).astype(int), 0, last)
            row, column = corner * PATCH
            window = (slice(row, row + size), slice(column, column + size))
            state = defect if differs[window].sum() >= 8 else None
            corners.append(corner)
            turn, flip, other = int(rng.integers(4)), int(rng.choice([-1, 1])), rng.choice(chosen)
            views = [self.intact[i], self.damaged[i], self.intact[other], self.below[i], self.part[i]]
            *views, part = (np.ascontiguousarray(np.rot90(view[window], turn)[:, ::flip]) for view in views)
            intact, damaged, foreign, below = recoloured(rng, views) if rng.random() < 0.5 else views
            share = cv2.resize(part.astype(np.float32), (size // PATCH,) * 2, interpolation=cv2.INTER_AREA)
            kind = list(NAMES).index(category) if category in NAMES else -100
            word = np.where(share > 0.7, kind, np.where(share < 0.3, len(NAMES), -100))
            colour = int(nearest_colour((intact[part > 0] if part.any() else intact.reshape(-1, 3)).mean(0) / 255))
            for image, seen in ((intact, None), (damaged, state)):
                images.append(image)
                captions.append(caption(rng, category, colour, seen))
                facts.append((category, colour, seen))
                words.append(word)
            altered, changed = replace(rng, intact, foreign, part, below)
            images.append(altered)
            share = cv2.resize(changed, (size // PATCH,) * 2, interpolation=cv2.INTER_AREA)
            replaced.append(np.where(share > 0.12, 1, np.where(share > 0.01, -100, 0)))
            words.append(np.where(share > 0.01, -100, word))
        order = [i for i in range(3 * count) if i % 3 != 2] + list(range(2, 3 * count, 3))
        image = np.ascontiguousarray(np.stack([images[i] for i in order]))
        colours = np.stack([cv2.resize(i, (size // PATCH,) * 2, interpolation=cv2.INTER_AREA) for i in image]) / 255.0
        return {
            "image": torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255,
            "texts": [c.text for c in captions],
            "true": torch.tensor([[c.holds(*fact) for c in captions] for fact in facts], dtype=torch.float32),
            "word": torch.from_numpy(np.stack([words[i] for i in order])).flatten(1),
            "colour": torch.from_numpy(nearest_colour(colours.astype(np.float32))).flatten(1),
            "replaced": torch.from_numpy(np.stack(replaced)).flatten(1),
            "corner": torch.from_numpy(np.concatenate([np.repeat(corners, 2, 0), corners])),
        }


def tower(visual: nn.Module, image: Tensor, corner: Tensor) -> tuple[Tensor, Tensor]:
    """Run the image tower with both paths; returns cls ``(B, D)`` and patches ``(P, B, N, D)``, all unit length.

    ``corner`` ``(B, 2)`` is the row and column of patches that each crop starts from. P counts the v-v features of each
    level, then the plain features of the last one.
    """
    tokens = visual.conv1(image)  # (B, W, h, w)
    h, w = tokens.shape[-2:]
    table = visual.positional_embedding[1:].unflatten(0, (SIZE // PATCH, SIZE // PATCH))
    rows, columns = corner[:, :1] + torch.arange(h), corner[:, 1:] + torch.arange(w)
    table = table[rows[:, :, None], columns[:, None]].flatten(1, 2)  # (B, h * w, W)
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(image), 1, -1)
    x = visual.ln_pre(torch.cat([first, tokens.flatten(2).mT + table], 1))  # (B, 1 + N, W)
    vv, levels = x, []
    for number, block in enumerate(visual.transformer.resblocks, 1):
        attention = block.attn
        qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, 1 + N, d)
        if number == FIRST:
            vv = x
        if number >= FIRST:
            vv = vv + attention.out_proj(attend(v, v, v).transpose(1, 2).flatten(2))
        x = x + attention.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
        if number in LEVELS:
            levels.append(vv[:, 1:])
    levels.append(x[:, 1:])
    patches = F.normalize((visual.ln_post(torch.stack(levels)) @ visual.proj).float(), dim=-1)
    return F.normalize((visual.ln_post(x[:, 0]) @ visual.proj).float(), dim=-1), patches


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in single precision: on a CPU its backward pass in bf16 is several times slower."""
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float())


def init_position(visual: nn.Module) -> None:
    """Start from sines and cosines of the two grid coordinates, so that neighbours are alike from the first step."""
    side, width = SIZE // PATCH, visual.positional_embedding.shape[1]
    wave = torch.arange(side)[:, None] / 100 ** (torch.arange(width // 4) / (width // 4))  # (side, W / 4)
    axis = torch.cat([wave.sin(), wave.cos()], 1)  # (side, W / 2)
    table = torch.cat([axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)], -1).flatten(0, 1)
    visual.positional_embedding.data[1:] = 0.3 * table


def agreement(logits: Tensor, true: Tensor) -> Tensor:
    """CLIP's two-way cross-entropy where several captions may be true of an image."""
    rows = -(F.log_softmax(logits, 1) * true / true.sum(1, keepdim=True)).sum(1).mean()
    columns = -(F.log_softmax(logits, 0) * true / true.sum(0, keepdim=True)).sum(0).mean()
    return (rows + columns) / 2


def vocabulary() -> list[str]:
    """Return every word of the captions."""
    phrases = [*NORMAL, *ANOMALOUS, *TEMPLATES, *GENERIC, *BACKGROUND, *COLOURS]
    phrases += [p for group in (*NAMES.values(), *DEFECTS.values()) for p in group]
    text = " ".join(phrases).replace("{}", " ").replace("-", " ")
    return sorted({word for word in text.lower().split() if word.isalpha()})


def main(
    output: Path,
    minutes: float = 60.0,
    seed: int = 0,
    scenes: int = 40_000,
    batch: int = 16,
    initial: Path | None = None,
    invented: float = 0.375,
    rate: float = 1e-3,
    bf16: bool = False,
) -> None:
    """Train and write the config, the tokenizer's merges and the weights (fp16).

    Args:
        output: Folder to write to.
        minutes: Time to train; the learning rate follows the clock.
        seed: Of the drawing, the crops and the weights.
        scenes: How many scenes to draw.
        batch: Scenes a step; each gives three images.
        initial: Weights to go on from, of an earlier run; None starts afresh.
        invented: Share of the scenes that show an invented surface or part instead of a known category or pattern.
        rate: Highest learning rate of AdamW; Muon's is 8 times as high.
        bf16: Multiply matrices in half precision, where the processor is fast at that.
    """
    torch.manual_seed(seed)
    output.mkdir(parents=True, exist_ok=True)
    learned = merges(vocabulary(), 4000)
    with gzip.GzipFile(output / "bpe.txt.gz", "wb", mtime=0) as file:
        file.write("\n".join(["#version: kanoclip-embedded", *learned]).encode())
    tokenizer = open_clip.SimpleTokenizer(str(output / "bpe.txt.gz"), context_length=32)
    config = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIZE, "patch_size": PATCH, "width": 192, "layers": LAYERS, "head_width": 32},
        "text_cfg": {"context_length": 32, "vocab_size": tokenizer.vocab_size, "width": 128, "heads": 4, "layers": 3},
    }
    looks = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    described = json.dumps({"model_cfg": config, "preprocess_cfg": looks}, indent=2)
    (output / "open_clip_config.json").write_text(described + "\n")
    model = open_clip.CLIP(**config)
    probe = nn.Parameter(torch.randn(2, 128))
    if initial is None:
        init_position(model.visual)
    else:
        model.load_state_dict(load_file(initial))
    blocks = (*model.visual.transformer.resblocks, *model.transformer.resblocks)
    hidden = [parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2]
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    muon = torch.optim.Muon(hidden, lr=8 * rate, weight_decay=0.01)
    others = [p for p in model.parameters() if all(p is not matrix for matrix in hidden)]
    optimizer = torch.optim.AdamW([*others, probe], lr=rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    start = time.time()
    pool = Pool(scenes, seed, 2, invented)
    print(f"{scenes} scenes drawn in {time.time() - start:.0f} s, vocabulary {tokenizer.vocab_size}", flush=True)
    first, second = (0.55, 0.85) if initial is None else (0.0, 0.35)  # shares of the time, when crops grow
    rng, start, step, seen, log = np.random.default_rng(seed), time.time(), 0, 0, {}
    while (progress := (time.time() - start) / (60 * minutes)) < 1:
        now = rate * min(1, step / 300) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        optimizer.param_groups[0]["lr"] = now
        data = pool.batch(batch, 64 if progress < first else 96 if progress < second else SIZE)
        image = (data["image"] - mean[:, None, None]) / std[:, None, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            cls, patches = tower(model.visual, image, data["corner"])
        names = [str(rng.choice(group)) for group in (*NAMES.values(), BACKGROUND)]
        texts = [*data["texts"], *names, *(f"{colour} color" for colour in COLOURS)]
        text = F.normalize(model.encode_text(tokenizer(texts)), dim=-1)
        captions, kinds, colours = text.split([len(data["texts"]), len(names), len(COLOURS)])
        scale = model.logit_scale.exp()
        paths = len(patches)
        last = patches[-2:].flatten(0, 2)  # v-v and plain features of the last level
        intact = patches[:, : 2 * batch : 2]
        oddness = torch.cat([intact, patches[:, 2 * batch :]], 1) @ F.normalize(probe, dim=-1).T / TAU
        replaced = torch.cat([torch.zeros_like(data["replaced"]), data["replaced"]]).expand(paths, -1, -1)
        oddness, weight = oddness[replaced >= 0], 1 / replaced[replaced >= 0].bincount(minlength=2).clamp_min(1)
        losses = {
            "caption": agreement(scale * cls[: 2 * batch] @ captions.T, data["true"]),
            "word": F.cross_entropy(last @ kinds.T * scale, data["word"].expand(2, -1, -1).flatten()),
            "colour": 0.3 * F.cross_entropy(last @ colours.T * scale, data["colour"].expand(2, -1, -1).flatten()),
            "replaced": F.cross_entropy(oddness, replaced[replaced >= 0], weight),
        }
        model.zero_grad()
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        muon.param_groups[0]["lr"] = 8 * now
        muon.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        average.update_parameters(model)
        step, seen = step + 1, seen + 3 * batch
        log = {name: 0.95 * log.get(name, v.item()) + 0.05 * v.item() for name, v in losses.items()}
        if step % 100 == 0:
            rate_now = seen / (time.time() - start)
            terms = " ".join(f"{name} {value:.3f}" for name, value in log.items())
            print(f"{step} {progress:.3f} {rate_now:.0f} images/s {terms}", flush=True)
        if step % 500 == 0:
            save(average.module, output)
    save(average.module, output)
    print(f"{step} steps, {seen} images in {minutes} minutes", flush=True)


def save(model: nn.Module, output: Path) -> None:
    """Write the weights in half precision."""
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, output / "model.safetensors")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
