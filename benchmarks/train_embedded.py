"""Train the small CLIP that ships in ``kanoclip/backbone/embedded`` on drawn images and captions.

    python benchmarks/train_embedded.py --minutes 5.5 --output runs/embedded        # all cores draw, the GPU learns

Four terms, summed. None sees the mask of a defect, and none sees an unseen category or kind of defect at all:

* image and caption agree (CLIP, with every caption that is true of an image as a positive; each batch holds the same
  scene intact and damaged, so that captions differ in the state alone);
* patches agree with the word of what they show, the part or its background, from the part's outline;
* patches agree with the word of their mean colour;
* self-supervised: patches tell whether they were replaced (by a piece of another image, a shifted piece of the same,
  a colour, a blur), through two free vectors that are thrown away afterwards. So local oddness is in the features, but
  no text means it: that is left for the prompts, the interaction and the adapter to learn.

The last three act on the plain and on the v-v path of the tapped levels alike, so that neither is favoured.

Other processes draw scenes all the while, so that few are seen often. The method is the same on a GPU and on a CPU.
``log.txt`` holds the terms as they go, each beside its value on scenes that are held out, of the averaged weights;
``model.safetensors`` are the last of these, ``best.safetensors`` those of the least sum on the held-out scenes. A run
that was cut is gone on with by ``--initial`` and another ``--seed``; what is lost are the optimizer's averages.
"""

# ruff: noqa: E402
from __future__ import annotations

import time

START = time.monotonic()  # before the imports: they count as part of --minutes

import gzip
import json
import math
import os
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from embedded_batches import CONTEXT, NOTHING, PATCH, Captions, Chance, Data, Pool
from embedded_captions import ANOMALOUS, BACKGROUND, COLOURS, DEFECTS, GENERIC, NAMES, NORMAL, TEMPLATES, merges
from embedded_scenes import Studio
from jsonargparse import auto_cli
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kanoclip.data.drawn.materials import SIZE

LAYERS, LEVELS, FIRST, TAU = 5, (2, 3, 4, 5), 2, 0.07
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
HELD_OUT, LOOKS, AVERAGED = 256, 20, 8  # scenes held out; looks at them; steps from one averaging to the next


def tower(visual: nn.Module, image: Tensor, corner: Tensor) -> tuple[Tensor, Tensor]:
    """Run the image tower with both paths; returns cls ``(B, D)`` and patches ``(P, B, N, D)``, all unit length.

    ``corner`` ``(B, 2)`` is the row and column of patches that each crop starts from. P counts the v-v features of each
    level, then the plain features of the last one.
    """
    tokens = visual.conv1(image)  # (B, W, h, w)
    table = visual.positional_embedding[1:].unflatten(0, (SIZE // PATCH, SIZE // PATCH))
    line = torch.arange(tokens.shape[-1], device=image.device)  # crops are square
    rows, columns = corner[:, :1] + line, corner[:, 1:] + line
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
    """Attention; on a CPU in single precision, as its backward pass in bf16 is several times slower there."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
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


class Muon:
    """Muon as ``torch.optim.Muon``, but for all matrices of a shape at once: one at a time they are 2,000 launches.

    Args:
        matrices: What is learned.
        decay: Weight decay.
    """

    def __init__(self, matrices: list[nn.Parameter], decay: float) -> None:
        self.groups = [[m for m in matrices if m.shape == shape] for shape in dict.fromkeys(m.shape for m in matrices)]
        self.momentum = [torch.zeros_like(torch.stack(list(group))) for group in self.groups]
        self.decay = decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take a step of the given learning rate."""
        for group, momentum in zip(self.groups, self.momentum, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group])
            momentum.lerp_(gradient, 0.05)
            x = gradient.lerp(momentum, 0.95).bfloat16()  # (K, rows, columns)
            rows, columns = x.shape[1:]
            x = x.mT if rows > columns else x
            x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
            for _ in range(5):  # Newton-Schulz: all singular values become about 1
                square = x @ x.mT
                x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
            x = (x.mT if rows > columns else x).float() * max(1, rows / columns) ** 0.5
            torch._foreach_mul_(group, 1 - rate * self.decay)
            torch._foreach_add_(group, list(x.unbind()), alpha=-rate)


class Pupil(nn.Module):
    """The CLIP in training, and the two vectors that tell replaced patches.

    Args:
        config: Of the CLIP, as open_clip takes it.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.clip = open_clip.CLIP(**config)
        self.probe = nn.Parameter(torch.randn(2, config["embed_dim"]))
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None])

    def forward(self, data: Data, bf16: bool) -> dict[str, Tensor]:
        """Return the four terms; similarities and losses are in single precision."""
        with torch.autocast(data.image.device.type, torch.bfloat16, enabled=bf16):
            cls, patches = tower(self.clip.visual, (data.image - self.mean) / self.std, data.corner)
        text = F.normalize(self.clip.encode_text(torch.cat(data.texts)), dim=-1)
        text = self.clip.logit_scale.exp() * text
        told, kinds, colours = text.split([len(one) for one in data.texts])
        scenes = len(data.replaced)
        last = patches[-2:]  # v-v and plain features of the last level
        odd = patches @ F.normalize(self.probe, dim=-1).T / TAU  # (P, 3 S, N, 2)
        odd = torch.cat([odd[:, :scenes], odd[:, 2 * scenes :]], 1)
        replaced = torch.cat([torch.zeros_like(data.replaced), data.replaced])
        weight = 1 / torch.stack([(replaced == 0).sum(), (replaced == 1).sum()]).clamp_min(1)
        return {
            "caption": agreement(cls[: 2 * scenes] @ told.T, data.true),
            "word": entropy(last @ kinds.T, data.word),
            "colour": 0.3 * entropy(last @ colours.T, data.colour),
            "replaced": entropy(odd, replaced, weight),
        }


def entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of patches ``(P, B, N, K)``; every path has the same label ``(B, N)``, at times none."""
    label = label.expand(len(logits), -1, -1)
    return F.cross_entropy(logits.flatten(0, 2), label.flatten(), weight, ignore_index=NOTHING)


def vocabulary() -> list[str]:
    """Return every word of the captions."""
    phrases = [*NORMAL, *ANOMALOUS, *TEMPLATES, *GENERIC, *BACKGROUND, *COLOURS]
    phrases += [p for group in (*NAMES.values(), *DEFECTS.values()) for p in group]
    text = " ".join(phrases).replace("{}", " ").replace("-", " ")
    return sorted({word for word in text.lower().split() if word.isalpha()})


def describe(output: Path) -> tuple[dict, open_clip.SimpleTokenizer]:
    """Write the tokenizer's merges and open_clip's config; returns what the CLIP is made of, and the tokenizer."""
    learned = merges(vocabulary(), 4000)
    with gzip.GzipFile(output / "bpe.txt.gz", "wb", mtime=0) as file:
        file.write("\n".join(["#version: kanoclip-embedded", *learned]).encode())
    tokenizer = open_clip.SimpleTokenizer(str(output / "bpe.txt.gz"), context_length=CONTEXT)
    config = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIZE, "patch_size": PATCH, "width": 192, "layers": LAYERS, "head_width": 32},
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": tokenizer.vocab_size, "width": 128, "heads": 4, "layers": 3
        },
    }  # fmt: skip
    looks = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    described = json.dumps({"model_cfg": config, "preprocess_cfg": looks}, indent=2)
    (output / "open_clip_config.json").write_text(described + "\n")
    return config, tokenizer


def save(model: nn.Module, file: Path) -> None:
    """Write the weights in half precision."""
    save_file({name: value.half().contiguous().cpu() for name, value in model.state_dict().items()}, file)


def take(studio: Studio, held: Pool, pool: Pool) -> None:
    """Take in what was drawn; the very first scenes are held out."""
    for scenes, facts in studio.take():
        (pool if len(held) == HELD_OUT else held).add(torch.from_numpy(scenes), torch.from_numpy(facts))


@torch.no_grad()
def look(pupil: Pupil, held: Pool, captions: Captions, count: int, bf16: bool) -> dict[str, float]:
    """Return the terms on held-out scenes, the same whole ones in the same way each time."""
    chance = Chance(0, held.scenes.device)
    terms = [pupil(held.batch(chance, captions, count, SIZE), bf16) for _ in range(HELD_OUT // count)]
    return {name: torch.stack([one[name] for one in terms]).mean().item() for name in terms[0]}


def main(
    output: Path,
    minutes: float = 60.0,
    seed: int = 0,
    scenes: int | None = None,
    batch: int | None = None,
    initial: Path | None = None,
    invented: float = 0.6,
    rate: float = 1e-3,
    bf16: bool | None = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    workers: int = len(os.sched_getaffinity(0)),
    ready: int = 8_000,
) -> None:
    """Train and write the config, the tokenizer's merges, the weights (fp16) and a log.

    Args:
        output: Folder to write to.
        minutes: Time for all, from the start of the process; the learning rate follows the clock.
        seed: Of the drawing, the crops and the weights.
        scenes: How many scenes are held at a time, 164 kB each on the device; new ones take the place of the oldest.
            null: 100,000 on a GPU, 20,000 on a CPU.
        batch: Whole scenes a step; each gives three images. Of crops there are more, as many as have the same pixels.
            null: 160 on a GPU, which keeps it busy, and 16 on a CPU.
        initial: Weights to go on from, of an earlier run; null starts afresh.
        invented: Share of the scenes that show an invented surface or part instead of a known category or pattern.
        rate: Highest learning rate of AdamW; Muon's is 8 times as high.
        bf16: Multiply the image tower's matrices in half precision. null: on a GPU.
        device: Where the model learns: cuda or cpu.
        workers: Processes that draw.
        ready: Scenes to wait for before training starts, for a third of the time at most.
    """
    studio = Studio(workers, seed, invented)  # forks, so before CUDA is used
    torch.manual_seed(seed)
    where = torch.device(device)
    gpu = where.type != "cpu"
    batch, bf16 = batch or (160 if gpu else 16), gpu if bf16 is None else bf16
    output.mkdir(parents=True, exist_ok=True)
    config, tokenizer = describe(output)
    pupil = Pupil(config)
    if initial is None:
        init_position(pupil.clip.visual)
    else:
        pupil.clip.load_state_dict(load_file(initial))
    pupil.to(where)
    blocks = (*pupil.clip.visual.transformer.resblocks, *pupil.clip.transformer.resblocks)
    hidden = [parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2]
    others = [p for p in pupil.parameters() if all(p is not matrix for matrix in hidden)]
    muon = Muon(hidden, 0.01)
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.998**AVERAGED)
    average = torch.optim.swa_utils.AveragedModel(pupil, multi_avg_fn=decay)

    def log(text: str) -> None:
        line = f"{time.monotonic() - START:.0f} s: {text}"
        print(line, flush=True)
        with open(output / "log.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    pool, held = Pool(scenes or (100_000 if gpu else 20_000), where), Pool(HELD_OUT, where)
    captions, chance = Captions(tokenizer, where), Chance(seed, where)
    log(f"{torch.cuda.get_device_name() if gpu else device}, seed {seed}, {batch} scenes a step, from {initial}")
    while len(pool) < ready and (len(pool) < batch or time.monotonic() < START + 20 * minutes):
        time.sleep(0.05)
        take(studio, held, pool)
    log(f"{len(pool)} scenes are ready, drawn by {workers} processes, which go on")
    begin = time.monotonic()
    end = max(begin + 1, START + 60 * minutes - 5)  # the last look takes a few seconds
    first, second = (0.4, 0.6) if initial is None else (0.0, 0.25)  # shares of the time, when crops grow
    step, seen, looks, best = 0, 0, 1, math.inf
    terms: dict[str, Tensor] = {}
    while True:
        progress = min(1.0, (time.monotonic() - begin) / (end - begin))
        if progress >= looks / LOOKS:
            found = look(average.module, held, captions, 64, bf16)
            total, looks = sum(found.values()), int(progress * LOOKS) + 1
            said = " ".join(f"{name} {terms[name].item():.3f}/{value:.3f}" for name, value in found.items())
            speed = seen / (time.monotonic() - begin)
            log(f"{progress:.0%} step {step}, {speed:.0f} images/s, {pool.seen} scenes, held out {total:.3f}; {said}")
            save(average.module.clip, output / "model.safetensors")
            if total < best:
                best = total
                save(average.module.clip, output / "best.safetensors")
        if progress == 1:
            break
        if step % 8 == 0:
            take(studio, held, pool)
        now = rate * min(1, step / 300) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        adam.param_groups[0]["lr"] = now
        size = 64 if progress < first else 96 if progress < second else SIZE
        count = batch * SIZE**2 // size**2
        losses = pupil(pool.batch(chance, captions, count, size), bf16)
        pupil.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(pupil.clip.parameters(), 1.0)
        adam.step()
        muon.step(8 * now)
        with torch.no_grad():
            pupil.clip.logit_scale.clamp_(0, math.log(100))
        if step % AVERAGED == 0:
            average.update_parameters(pupil)
        step, seen = step + 1, seen + 3 * count
        terms = {name: value.detach().lerp(terms.get(name, value.detach()), 0.95) for name, value in losses.items()}
    studio.close()
    log(f"{step} steps, {seen} images, {pool.seen} scenes")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
