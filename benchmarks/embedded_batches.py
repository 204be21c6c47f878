"""Batches for the embedded CLIP, all made on the device: crops, turns, colours, replaced regions and captions. Ours.

Images are ``(S, 3, H, W)`` float32 with values 0 to 255; every random number comes from one ``Chance``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import open_clip
import torch
import torch.nn.functional as F
from embedded_captions import ANOMALOUS, BACKGROUND, COLOURS, DEFECTS, GENERIC, NAMES, NORMAL, TEMPLATES
from torch import Tensor

from kanoclip.data.drawn.materials import SIZE

PATCH, ANYTHING, NOTHING = 8, len(NAMES), -100  # ANYTHING: a category without a name; NOTHING: no label
CONTEXT, EDGE = 32, 16  # tokens of a text; pixels by which an image is mirrored at its rim before it is blurred


class Chance:
    """Random tensors on one device, from one seed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw numbers between two."""
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def below(self, end: int, *shape: int) -> Tensor:
        """Draw whole numbers from 0 to ``end - 1``."""
        return torch.randint(end, shape, generator=self.generator, device=self.device)

    def happens(self, odds: float, *shape: int) -> Tensor:
        """Draw what is true with given odds."""
        return self.uniform(0, 1, *shape) < odds

    def among(self, counts: Tensor) -> Tensor:
        """Draw one whole number below each count."""
        return (self.uniform(0, 1, *counts.shape) * counts).long()

    def spot(self, area: Tensor) -> Tensor:
        """Draw one pixel of each area ``(S, H, W)`` bool: row and column ``(S, 2)``; any where an area is empty."""
        found = (self.uniform(0.1, 1, *area.shape) * area).flatten(1).argmax(1)
        return torch.stack([found // area.shape[-1], found % area.shape[-1]], 1)


def each(values: Tensor) -> Tensor:
    """Let one number for each image ``(S,)`` meet images ``(S, 3, H, W)``."""
    return values[:, None, None, None]


def smooth(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur ``(S, C, H, W)`` as if it went on periodically, each by its own ``sigma`` ``(S,)`` in pixels."""
    rows, columns = (torch.fft.fftfreq(n, device=image.device) for n in image.shape[-2:])
    columns = columns[: image.shape[-1] // 2 + 1]
    gain = torch.exp(-2 * (math.pi * each(sigma)) ** 2 * (rows[:, None] ** 2 + columns**2))
    return torch.fft.irfft2(torch.fft.rfft2(image) * gain, s=image.shape[-2:])


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur ``(S, C, H, W)``, mirrored at its rim."""
    return smooth(F.pad(image, (EDGE,) * 4, "reflect"), sigma)[..., EDGE:-EDGE, EDGE:-EDGE]


def noise(chance: Chance, length: Tensor, size: int) -> Tensor:
    """Draw noise ``(S, size, size)`` of zero mean and unit deviation, of its own correlation ``length`` in pixels."""
    white = torch.randn((len(length), 1, size, size), generator=chance.generator, device=chance.device)
    value = smooth(white, 0.4 * length)[:, 0]
    deviation, mean = torch.std_mean(value, (1, 2), keepdim=True)
    return (value - mean) / (deviation + 1e-6)


def any_colour(chance: Chance, count: int) -> Tensor:
    """Draw colours ``(count, 3)`` in [0, 1] of any hue and saturation."""
    hue, saturation = chance.uniform(0, 6, count, 1), chance.uniform(0, 1, count, 1)
    value = chance.uniform(0.2, 0.95, count, 1)
    turn = (5 - 2 * torch.arange(3, device=chance.device) + hue) % 6  # 5, 3, 1 for R, G, B
    return value * (1 - saturation * torch.minimum(turn, 4 - turn).clamp(0, 1))


def gains(chance: Chance, low: float, high: float, count: int) -> Tensor:
    """Draw factors ``(count, 3)`` of the colours, of half of the images the same for all three."""
    one, three = chance.uniform(low, high, count, 1), chance.uniform(low, high, count, 3)
    return torch.where(chance.happens(0.5, count, 1), one, three)


def turned(chance: Chance, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Draw one of the eight turns and flips of a square: rows and columns of its pixels ``(count, size, size)``."""
    line, (first, second, swap) = torch.arange(size, device=chance.device), chance.below(2, 3, count, 1).bool()
    a, b = (torch.where(back, size - 1 - line, line) for back in (first, second))
    rows, columns = a[:, :, None].expand(-1, -1, size), b[:, None].expand(-1, size, -1)
    swap = swap[..., None]
    return torch.where(swap, columns, rows), torch.where(swap, rows, columns)


def taken(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take pixels ``(S, C, h, w)`` of images ``(S, C, H, W)``."""
    found = (rows * image.shape[-1] + columns).flatten(1)[:, None].expand(-1, image.shape[1], -1)
    return image.flatten(2).gather(2, found).unflatten(2, rows.shape[1:])


def region(chance: Chance, size: int, centre: Tensor) -> Tensor:
    """Draw the regions to be replaced ``(S, size, size)`` bool: ellipses or boxes, at times ragged, or thin scars.

    ``centre`` ``(S, 2)`` is row and column in pixels; scars are 2 to 6 pixels thin.
    """
    count, line = len(centre), torch.arange(size, device=chance.device)
    long = size * torch.exp(chance.uniform(math.log(0.04), math.log(0.22), count))  # pixels, half of the length
    shape, angle = chance.below(3, count), each(chance.uniform(0, math.pi, count))[:, 0]
    length = torch.where(shape == 2, 1.25 * long, long)
    width = torch.where(shape == 2, chance.uniform(1, 3, count), long * chance.uniform(0.4, 1, count))
    y, x = line[:, None] - centre[:, 0, None, None], line - centre[:, 1, None, None]
    u = (x * angle.cos() + y * angle.sin()).abs() / (length[:, None, None] + 0.5)
    v = (y * angle.cos() - x * angle.sin()).abs() / (width[:, None, None] + 0.5)
    cover = torch.where((shape == 0)[:, None, None], u**2 + v**2, torch.maximum(u, v)) <= 1
    ragged = (shape < 2) & chance.happens(0.5, count)
    holes = noise(chance, chance.uniform(4, 10, count), size) <= chance.uniform(-1.2, 0, count, 1, 1)
    return cover & ~(ragged[:, None, None] & holes)


def filling(chance: Chance, image: Tensor, other: Tensor) -> Tensor:
    """Make what a region is replaced by: another image, a shifted self, other colours, an even colour, blur, noise."""
    count, size = len(image), image.shape[-1]
    shifts, (rows, columns) = 8 + chance.below(size - 16, 2, count, 1, 1), turned(chance, count, size)
    grain = noise(chance, chance.uniform(1, 4, count), size)[:, None]
    kinds = (
        other,
        taken(image, (rows + shifts[0]) % size, (columns + shifts[1]) % size),
        image * gains(chance, 0.3, 1.8, count)[..., None, None],
        255 * any_colour(chance, count)[..., None, None] * (1 + each(chance.uniform(0, 0.2, count)) * grain),
        blur(image, torch.full((count,), 4.0, device=chance.device)) * each(chance.uniform(0.75, 1.3, count)),
        image + 255 * each(chance.uniform(0.08, 0.25, count)) * grain,
    )
    kind = each(chance.below(len(kinds), count))
    chosen = kinds[0]
    for number, one in enumerate(kinds[1:], 1):
        chosen = torch.where(kind == number, one, chosen)
    return chosen.clamp(0, 255)


def replace(chance: Chance, image: Tensor, other: Tensor, part: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """Replace one to three regions of each image; returns the images and the replaced pixels ``(S, H, W)`` bool.

    At the rim of a part ``(S, H, W)`` bool what lies below it may come through, as if a piece were cut off.
    """
    count, size = 3 * len(image), image.shape[-1]
    amount = chance.below(4, len(image)).clamp_min(1)  # 1, 1, 2 or 3
    rim = part & (F.max_pool2d((~part).float()[:, None], 3, 1, 1)[:, 0] > 0)
    rims, parts = rim.repeat(3, 1, 1), part.repeat(3, 1, 1)  # all three regions at once: few large operations
    cut = (chance.happens(0.3, count) & rims.flatten(1).any(1))[:, None, None]
    centre = torch.where(cut[..., 0], chance.spot(rims), chance.uniform(0, size, count, 2))
    cover = region(chance, size, centre) & (parts | ~cut)
    new = filling(chance, image.repeat(3, 1, 1, 1), other.repeat(3, 1, 1, 1))
    new = torch.where(cut[:, None], below.repeat(3, 1, 1, 1), new)
    soft = cover[:, None].float()
    soft = torch.where(each(chance.happens(0.6, count)), blur(soft, chance.uniform(0.4, 2, count)), soft).clamp(0, 1)
    changed = torch.zeros_like(part)
    for number, (new_one, soft_one) in enumerate(zip(new.chunk(3), soft.chunk(3), strict=True)):
        inside = soft_one[:, 0] >= 0.5
        pixels = inside.sum((1, 2))
        contrast = ((new_one - image).abs().amax(1) * inside).sum((1, 2)) / pixels.clamp_min(1)
        seen = ((number < amount) & (pixels >= 8) & (contrast >= 18))[:, None, None]  # else no label
        image = torch.lerp(image, new_one, soft_one * seen[:, None])
        changed = changed | (inside & seen)
    return image.floor(), changed


def shares(cover: Tensor) -> Tensor:
    """Return how much of each patch is covered: ``(S, H, W)`` -> ``(S, h, w)``."""
    return F.avg_pool2d(cover[:, None].float(), PATCH)[:, 0]


class Captions:
    """Words captions as rows of tokens, and tells of which images they are true.

    Any of kind, colour and state may stay general; so does a kind without a name. A caption is a frame, such as "a
    photo of a cracked {}", around a name, such as "red nut"; both are tokenized once and joined on the device.
    """

    def __init__(self, tokenizer: open_clip.SimpleTokenizer, device: torch.device) -> None:
        self.begin, self.end = tokenizer.sot_token_id, tokenizer.eot_token_id

        def table(
            groups: list[list[str]], put: tuple[list[int], list[int]] = ([], [])
        ) -> tuple[Tensor, Tensor, Tensor]:
            """Return the tokens of all texts, and where each group starts and how many it has."""
            rows = [put[0] + tokenizer.encode(text) + put[1] for group in groups for text in group]
            tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], True)
            counts = torch.tensor([len(group) for group in groups])
            return tokens.to(device), (counts.cumsum(0) - counts).to(device), counts.to(device)

        states = [NORMAL, ANOMALOUS, *DEFECTS.values()]
        frames = [[t.format(phrase).split("{}") for phrase in phrases for t in TEMPLATES] for phrases in states]
        self.before, self.frame, self.frames = table([[f[0] for f in group] for group in frames], ([self.begin], []))
        self.after = table([[f[1] for f in group] for group in frames], ([], [self.end]))[0]
        self.names, self.name, self.named = table([*NAMES.values(), GENERIC, BACKGROUND])  # GENERIC stands at ANYTHING
        self.tints = F.pad(table([list(COLOURS)])[0], (0, 0, 0, 1))  # the last: no colour is told
        self.colours = tokenizer([f"{colour} color" for colour in COLOURS], CONTEXT).to(device)

    def write(self, chance: Chance, facts: Tensor) -> tuple[Tensor, Tensor]:
        """Word a caption of each image.

        Args:
            chance: Decides.
            facts: Category, colour and state ``(B, 3)``; the state is 0 if intact, else 2 and the number of the defect.

        Returns:
            Tokens ``(B, CONTEXT)``; and ``(B, B)``, 1 where an image (row) is as a caption (column) says, else 0.
        """
        category, colour, state = facts.T
        kind = torch.where(chance.happens(0.65, len(facts)), category, ANYTHING)
        tint = torch.where(chance.happens(0.4, len(facts)), colour, len(COLOURS))
        claim = torch.where(chance.happens(0.4, len(facts)), state.clamp_max(1), state)  # 1: some damage
        frame = self.frame[claim] + chance.among(self.frames[claim])
        name = self.name[kind] + chance.among(self.named[kind])
        text = self._joined(self.before[frame], self.tints[tint], self.names[name], self.after[frame])
        true = (claim == state[:, None]) | ((claim == 1) & (state[:, None] > 1))
        true &= (kind == ANYTHING) | (kind == category[:, None])
        true &= (tint == len(COLOURS)) | (tint == colour[:, None])
        return text, true.float()

    def words(self, chance: Chance) -> Tensor:
        """Choose one name of each category, then one of the background: tokens ``(len(NAMES) + 1, CONTEXT)``."""
        named = torch.cat([self.named[:ANYTHING], self.named[-1:]])
        name = torch.cat([self.name[:ANYTHING], self.name[-1:]]) + chance.among(named)
        begin, end = (torch.full((len(name), 1), token, device=name.device) for token in (self.begin, self.end))
        return self._joined(begin, self.names[name], end)

    @staticmethod
    def _joined(*pieces: Tensor) -> Tensor:
        tokens = torch.cat(pieces, 1)
        tokens = tokens.gather(1, (tokens == 0).byte().argsort(dim=1, stable=True))  # what is padded moves to the end
        return F.pad(tokens, (0, CONTEXT - tokens.shape[1]))


@dataclass
class Data:
    """A batch of S scenes, each intact, then each damaged, then each intact with regions replaced.

    Attributes:
        image: ``(3 S, 3, H, W)``.
        corner: Row and column of patches that each crop starts from ``(3 S, 2)``.
        texts: Tokens ``(count, CONTEXT)``: captions of the first two thirds; words of categories and background; words
            of colours.
        true: ``(2 S, 2 S)``, 1 where an image is as a caption says.
        word: For each patch the category, or ``len(NAMES)`` for background ``(3 S, N)``.
        colour: For each patch the nearest of ``COLOURS`` ``(3 S, N)``.
        replaced: For each patch of the last third whether it was replaced ``(S, N)``.
    """

    image: Tensor
    corner: Tensor
    texts: tuple[Tensor, Tensor, Tensor]
    true: Tensor
    word: Tensor
    colour: Tensor
    replaced: Tensor


class Pool:
    """The newest scenes, on the device as bytes; batches are random crops, turns, flips and recolourings of them.

    A scene is ``(10, SIZE, SIZE)`` uint8: intact, damaged, what lies below its part (3 each), and the part in {0, 1};
    and its category and its defect, as numbers.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.scenes = torch.empty((capacity, 10, SIZE, SIZE), dtype=torch.uint8, device=device)
        self.facts = torch.empty((capacity, 2), dtype=torch.long, device=device)
        self.seen = 0
        self.table = torch.tensor(list(COLOURS.values()), device=device)

    def __len__(self) -> int:
        return min(self.seen, len(self.scenes))

    def add(self, scenes: Tensor, facts: Tensor) -> None:
        """Take scenes in; where there is no room, in place of the oldest."""
        at = (torch.arange(len(scenes)) + self.seen) % len(self.scenes)
        at = at.to(self.facts.device)
        self.scenes[at], self.facts[at] = scenes.to(at.device), facts.to(at.device)
        self.seen += len(scenes)

    @torch.no_grad()
    def batch(self, chance: Chance, captions: Captions, count: int, size: int) -> Data:
        """Draw a batch of ``count`` scenes, cut to ``size`` pixels."""
        chosen = chance.below(len(self), count)
        (category, defect), scenes = self.facts[chosen].T, self.scenes[chosen]
        differs = (scenes[:, :3].short() - scenes[:, 3:6].short()).abs().amax(1) > 20
        last = (SIZE - size) // PATCH
        near = chance.spot(differs) - 8 - chance.below(size - 16, count, 2)
        near = (near / PATCH).round().long().clamp(0, last)
        shown = chance.happens(0.75, count) & differs.flatten(1).any(1)  # most crops show the damage
        corner = torch.where(shown[:, None], near, chance.below(last + 1, count, 2))
        rows, columns = turned(chance, count, size)
        rows, columns = (at + PATCH * corner[:, i, None, None] for i, at in enumerate((rows, columns)))
        other = scenes[chance.uniform(0, 1, count).argsort(), :3]
        views = taken(torch.cat([scenes, other, differs[:, None].byte()], 1), rows, columns).float()
        part, state = views[:, 9] > 0, torch.where(views[:, -1].sum((1, 2)) >= 8, 2 + defect, 0)
        views = torch.cat([views[:, :9], views[:, 10:13]], 1).unflatten(1, (4, 3))  # intact, damaged, below, other
        order = torch.where(chance.happens(0.5, count, 1), chance.uniform(0, 1, count, 3).argsort(1), self._unchanged())
        gain = torch.where(chance.happens(0.5, count, 1), gains(chance, 0.7, 1.3, count), 1.0)
        views = views.gather(2, order[:, None, :, None, None].expand_as(views)) * gain[:, None, :, None, None]
        intact, damaged, below, other = views.clamp(0, 255).floor().unbind(1)

        altered, changed = replace(chance, intact, other, part, below)
        image = torch.cat([intact, damaged, altered])
        seen = torch.where(part.flatten(1).any(1)[:, None, None], part, True)[:, None]
        tint = self.nearest((intact * seen).sum((2, 3)) / seen.sum((2, 3)))
        facts = torch.stack([torch.cat([category] * 2), torch.cat([tint] * 2), torch.cat([state * 0, state])], 1)
        text, true = captions.write(chance, facts)
        texts = (text, captions.words(chance), captions.colours)
        share, kind = shares(part), torch.where(category < ANYTHING, category, NOTHING)[:, None, None]
        word = torch.where(share > 0.7, kind, torch.where(share < 0.3, len(NAMES), NOTHING))
        share = shares(changed)
        replaced = torch.where(share > 0.12, 1, torch.where(share > 0.01, NOTHING, 0))
        word = torch.cat([word, word, torch.where(share > 0.01, NOTHING, word)])
        colour = self.nearest(F.avg_pool2d(image, PATCH).movedim(1, -1))
        return Data(
            image, corner.repeat(3, 1), texts, true, word.flatten(1), colour.flatten(1), replaced.flatten(1)
        )  # fmt: skip

    def nearest(self, colour: Tensor) -> Tensor:
        """Return the nearest of ``COLOURS`` to colours ``(..., 3)``."""
        return (colour[..., None, :] / 255 - self.table).square().sum(-1).argmin(-1)

    def _unchanged(self) -> Tensor:
        return torch.arange(3, device=self.table.device)
