"""Marked places to masks; crops with context around a mask, and pasting back so that nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Combine = Literal["union", "majority"]
Mask = np.ndarray
"""(H, W) float32 in 0..1."""

MAX_GROWN = 0.5  # of the picture: a flood that fills more is the background, not an object


class RegionError(ValueError):
    """A mask or picture that cannot be used; the message says what to do."""


# Marks to masks


def disc(point: tuple[float, float], radius: float, height: int, width: int) -> Mask:
    """A circle around a point in fractions; radius in fractions of the shorter side, one pixel at least."""
    x, y = point[0] * width - 0.5, point[1] * height - 0.5
    reach = max(radius * min(height, width), 1.0)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    return ((columns - x) ** 2 + (rows - y) ** 2 <= reach**2).astype(np.float32)


def box(first: tuple[float, float], second: tuple[float, float], height: int, width: int) -> Mask:
    """All pixels that a rectangle between two corners in fractions touches."""
    left, right = sorted((first[0] * width, second[0] * width))
    top, bottom = sorted((first[1] * height, second[1] * height))
    mask = np.zeros((height, width), np.float32)
    mask[math.floor(top + 1e-6) : max(math.ceil(bottom - 1e-6), math.floor(top + 1e-6) + 1),
         math.floor(left + 1e-6) : max(math.ceil(right - 1e-6), math.floor(left + 1e-6) + 1)] = 1  # fmt: skip
    return mask


def polygon(points: Sequence[tuple[float, float]], height: int, width: int) -> Mask:
    """The inside of a polygon with corners in fractions, its edge included."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (width, height))
    corners = [(x * width - 0.5, y * height - 0.5) for x, y in points]
    ImageDraw.Draw(canvas).polygon(corners, fill=1, outline=1)
    return np.asarray(canvas, dtype=np.float32)


def painted(mask: np.ndarray, height: int, width: int) -> Mask:
    """A brush mask (H, W) uint8, at another size if need be."""
    found = torch.from_numpy(mask.astype(np.float32) / 255)[None, None]
    if found.shape[-2:] != (height, width):
        found = nn.functional.interpolate(found, size=(height, width), mode="bilinear", antialias=True)
    return found[0, 0].numpy()


def snapped(point: tuple[float, float], pixels: np.ndarray, tolerance: float, radius: float) -> Mask:
    """The object of like colour that a point lies on, with its soft edge; the circle where there is no such object.

    pixels: (H, W, 3) uint8. tolerance: the largest difference from the colour at the point, in CIE L*a*b* (about 2 is
    just visible, 20 is another shade). What fills more than half of the picture is the ground and no object.
    """
    from scipy import ndimage

    height, width = pixels.shape[:2]
    row, column = min(int(point[1] * height), height - 1), min(int(point[0] * width), width - 1)
    colours = lab(pixels)
    around = colours[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].reshape(-1, 3)
    near = np.linalg.norm(colours - np.median(around, axis=0), axis=-1) <= tolerance
    labels = np.zeros(near.shape, np.int32)
    ndimage.label(near, output=labels)
    own = labels[row, column]
    found = labels == own if own else np.zeros_like(near)
    if not found.any() or found.mean() > MAX_GROWN:
        return disc(point, radius, height, width)
    closed = ndimage.binary_fill_holes(ndimage.binary_dilation(found, iterations=1))
    return np.asarray(closed, dtype=np.float32)


def lab(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 sRGB -> CIE L*a*b* under D65 (IEC 61966-2-1; CIE 15)."""
    light = pixels.astype(np.float32) / 255
    linear = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
    xyz = linear @ (to_xyz / to_xyz.sum(axis=1, keepdims=True)).T
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def combined(by_rater: Mapping[str, Sequence[Mask]], how: Combine) -> Mask | None:
    """The masks of each rater together, then of all raters: anybody's places, or those of more than half of them."""
    whole = [np.maximum.reduce(list(masks)) for masks in by_rater.values() if masks]
    if not whole:
        return None
    if how == "union":
        return np.maximum.reduce(whole)
    marked = np.stack(whole) > 0.5
    return (marked.sum(axis=0) > len(whole) / 2).astype(np.float32)


def grown(mask: Tensor, pixels: int) -> Tensor:
    """mask (B, H, W), larger by so many pixels on every side, or smaller."""
    if pixels == 0:
        return mask
    reach = abs(pixels)
    line = torch.arange(-reach, reach + 1)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    near = (rows**2 + columns**2 <= reach**2).flatten().nonzero()[:, 0].tolist()
    padded = nn.functional.pad(mask if pixels > 0 else 1 - mask, (reach,) * 4)
    height, width, size = *mask.shape[-2:], 2 * reach + 1
    result = torch.zeros_like(mask)
    for place in near:
        top, left = divmod(place, size)
        result = torch.maximum(result, padded[..., top : top + height, left : left + width])
    return result if pixels > 0 else 1 - result


def feathered(mask: Tensor, pixels: float) -> Tensor:
    """mask (B, H, W) with edges that rise within so many pixels, inside of the mask: what is outside stays 0.

    The rise is level at both of its ends, so that nothing begins at the edge itself: there a seam would be seen.
    """
    from scipy import ndimage

    if pixels <= 0:
        return mask
    result = mask.clone()
    for one, soft in zip(mask, result, strict=True):
        if not bool((one <= 0).any()):
            continue
        inside = torch.from_numpy(ndimage.distance_transform_edt((one > 0).cpu().numpy())).to(one)
        rise = ((inside - 0.5) / pixels).clamp(0, 1)  # of the middle of each pixel
        soft.mul_(rise * rise * (3 - 2 * rise))
    return result


# Crops


@dataclass(frozen=True)
class Crop:
    """A rectangle of a picture, in pixels, and the size at which it is made anew."""

    top: int
    left: int
    height: int
    width: int
    to_height: int
    to_width: int

    def take(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, to_height, to_width)."""
        cut = images[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return resized(cut, self.to_height, self.to_width)

    def put(self, part: Tensor) -> Tensor:
        """(B, C, to_height, to_width) -> (B, C, height, width), at the size that it is pasted with."""
        return resized(part, self.height, self.width)

    def paste(self, images: Tensor, part: Tensor, mask: Tensor) -> Tensor:
        """images (B, C, H, W) with part (B, C, height, width) blended in by mask (B, 1, H, W).

        Where the mask is 0 the very bits of images stay.
        """
        result = images.clone()
        rows, columns = slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        old, weight = result[..., rows, columns], mask[..., rows, columns]
        result[..., rows, columns] = torch.where(weight > 0, old.lerp(part.to(old), weight.to(old)), old)
        return result


def resized(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    smaller = height * width < images.shape[-2] * images.shape[-1]
    return nn.functional.interpolate(
        images, size=(height, width), mode="bicubic" if not smaller else "bilinear", antialias=True
    ).clamp(0, 1)


def crop_around(mask: Tensor, context: float, size: int, zoom: float = 1.0, multiple: int = 16) -> Crop:
    """The part of a picture to make anew: the mask (H, W) with `context` times its extent around it.

    size: the side, in pixels, that the model likes. The part is never smaller than size / zoom where the picture
    allows, and is made at a size whose sides are multiples of `multiple`. Raises RegionError for an empty mask.
    """
    height, width = mask.shape
    where = (mask > 0).nonzero()
    if len(where) == 0:
        raise RegionError("The mask is empty, so there is nothing to make anew. Mark a place, or connect another mask.")
    (top, left), (bottom, right) = where.min(dim=0).values.tolist(), (where.max(dim=0).values + 1).tolist()
    least = size / max(zoom, 1e-3)
    top, tall = _span(top, bottom, context, least, height)
    left, wide = _span(left, right, context, least, width)
    scale = math.sqrt(size * size / (tall * wide))
    scale = min(max(scale, 1.0), zoom) if scale >= 1 else max(scale, 1 / 1.5)
    return Crop(top, left, tall, wide, *(max(round(side * scale / multiple), 1) * multiple for side in (tall, wide)))


def _span(start: int, end: int, context: float, least: float, limit: int) -> tuple[int, int]:
    """(first pixel, length) of one side of a crop, moved into the picture."""
    length = min(max(round((end - start) * (1 + 2 * context)), math.ceil(least)), limit)
    first = round((start + end) / 2 - length / 2)
    return min(max(first, 0), limit - length), length


MOST_DRIFT = 0.3
"""Of the range of a colour: an autoencoder shifts no colour further, what differs more is another thing."""


def matched(part: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """part (B, C, H, W) with the colours that old has just outside of mask (B, 1, H, W).

    An autoencoder shifts colours a little, in one corner other than in the next; what it did to the pixels around the
    mask, which were not to change, is taken off what is inside: at its edge as much as beside it, further in ever
    smoother. Seamless cloning (Perez et al. 2003, eq. 4) solves a Laplace equation for this; here the gaps are filled
    from coarser and coarser pictures (Gortler et al. 1996, sec. 3.4), which takes as long as looking at them once.
    """
    known = (mask <= 0).to(part)
    drift = (old - part).clamp(-MOST_DRIFT, MOST_DRIFT)
    return (part + filled(drift, known)).clamp(0, 1)


def filled(values: Tensor, known: Tensor) -> Tensor:
    """values (B, C, H, W) where known (B, 1, H, W) is 1, elsewhere what lies around; 0 where nothing is known."""
    if min(values.shape[-2:]) == 1 or bool((known > 0).all()):
        total = known.sum(dim=(-2, -1), keepdim=True)
        mean = (values * known).sum(dim=(-2, -1), keepdim=True) / total.clamp(min=1e-6)
        return values.lerp(mean, 1 - known)
    weight = nn.functional.avg_pool2d(known, 2, ceil_mode=True)
    half = nn.functional.avg_pool2d(values * known, 2, ceil_mode=True) / weight.clamp(min=1e-6)
    coarse = filled(half, (weight * 4).clamp(max=1))
    wide = nn.functional.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    return known * values + (1 - known) * wide


def fitted(mask: Tensor, height: int, width: int) -> Tensor:
    """mask (B, H, W) as it lies over a crop of (height, width): what is inside stays inside, also where it shrinks."""
    large = nn.functional.interpolate(mask[:, None], size=(height, width), mode="bilinear", antialias=True)
    return large[:, 0].clamp(0, 1)


def progressive(mask: Tensor, share: float) -> Tensor:
    """Which of a soft mask is free at this point of a run; share: what is left of the run, 1 to 0.

    Differential diffusion (Levin & Fried 2023, arXiv:2306.00950): what is wholly marked is free from the start, what
    is half marked from half of the run on, so that edges grow into their surroundings.
    """
    return (mask >= max(share, 1e-6)).to(mask)


# Candidates


def ranked(scores: Sequence[float]) -> list[int]:
    """Places of candidates, the best first; equal ones keep their order."""
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def scored_inside(score: Callable[[Tensor], list[float]], images: Tensor, mask: Tensor, padding: float) -> list[float]:
    """What a reward gives for the marked part of images (N, C, H, W), with `padding` times its extent around it."""
    crop = crop_around(mask, padding, 1, multiple=1)
    rows, columns = slice(crop.top, crop.top + crop.height), slice(crop.left, crop.left + crop.width)
    return score(images[..., rows, columns])


def seam(image: Tensor, mask: Tensor) -> tuple[float, float]:
    """(mean gradient across the edge of the mask, mean gradient just outside of it) of image (C, H, W).

    mask: (H, W), its edge where it leaves 0. A paste that cannot be seen has no more at the edge than beside it.
    """
    inside = mask > 0
    outside = ~(nn.functional.max_pool2d(inside[None].float(), 3, stride=1, padding=1)[0] > 0)
    across, beside = [], []
    for dim in (-2, -1):
        step = image.diff(dim=dim).abs().mean(dim=0)
        first, second = inside.narrow(dim, 0, inside.shape[dim] - 1), inside.narrow(dim, 1, inside.shape[dim] - 1)
        across.append(step[first != second])
        free = outside.narrow(dim, 0, outside.shape[dim] - 1) & outside.narrow(dim, 1, outside.shape[dim] - 1)
        beside.append(step[free])
    return float(torch.cat(across).mean()), float(torch.cat(beside).mean())
