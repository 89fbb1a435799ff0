"""The drawn world of the demo: a few shapes on a background, what a caption may say of them, and watermarks.

Every picture is drawn from a `Scene`, so that what is truly in it is known. A caption tells only some of it: prompts
leave things open, and a taste lives in what they leave open. Pictures are 64 x 64 RGB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 64
OVERSAMPLE = 4  # shapes are drawn this much larger and averaged down, which gives soft edges

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (48, 84, 208),
    "yellow": (238, 200, 40),
    "purple": (140, 60, 180),
}
COUNTS = ("one", "two", "three")
SIZES = ("small", "large")
PLACES = ("left", "right", "top", "bottom", "middle")
LIGHTS = ("dark", "bright")
TEXTURES = ("plain", "striped", "dotted")
WATERMARKS = ("none", "tiled", "corner", "band")

# A word is used where it is plainly true; the judge asks whether the value lies on the word's side of the gap between.
SMALLEST, LARGEST = 6.0, 13.0  # radius in pixels: below 6 an 8 x 8 latent hardly holds a corner
SMALL_BELOW, LARGE_ABOVE, SIZE_MIDDLE = 8.2, 10.8, 9.5
OFF_CENTRE, CENTRED = 8.0, 4.0  # pixels from the middle, in either direction
DARK_BELOW, BRIGHT_ABOVE = 0.4, 0.65  # background level, 0..1


@dataclass(frozen=True)
class Scene:
    """All that is drawn. radius, x, y in pixels; light 0..1 is the background's grey level; tint a small RGB shift."""

    shape: str
    colour: str
    count: int
    radius: float
    x: float
    y: float
    light: float
    tint: tuple[float, float, float]
    texture: str
    texture_phase: float
    watermark: str
    watermark_seed: int


def group(count: int, radius: float) -> np.ndarray:
    """Offsets (count, 2) of the members of a group from its centre: alone, side by side, or in a triangle."""
    step = 1.15 * radius
    return {
        1: np.zeros((1, 2)),
        2: np.array([[-step, 0.0], [step, 0.0]]),
        3: np.array([[-step, 0.95 * radius], [step, 0.95 * radius], [0.0, -1.15 * radius]]),
    }[count]


def sample_scene(rng: np.random.Generator, watermark_rate: float = 0.35) -> Scene:
    """A scene with every attribute drawn independently, as far as the group fits into the picture."""
    count = int(rng.integers(1, 4))
    radius = float(rng.uniform(SMALLEST, LARGEST))
    reach = np.abs(group(count, radius)).max(axis=0) + radius + 1.5
    x, y = (float(rng.uniform(r, SIZE - r)) for r in reach)
    watermarked = rng.random() < watermark_rate
    return Scene(
        shape=str(rng.choice(SHAPES)),
        colour=str(rng.choice(list(COLOURS))),
        count=count,
        radius=radius,
        x=x,
        y=y,
        light=float(rng.uniform(0.12, 0.95)),
        tint=tuple(float(t) for t in rng.uniform(-0.05, 0.05, 3)),
        texture=str(rng.choice(TEXTURES)),
        texture_phase=float(rng.random()),
        watermark=str(rng.choice(WATERMARKS[1:])) if watermarked else "none",
        watermark_seed=int(rng.integers(2**31)),
    )


def attributes(scene: Scene) -> dict[str, str]:
    """The words that are plainly true of a scene, by attribute; what lies between two words is missing."""
    said = {"shape": scene.shape, "colour": scene.colour, "count": COUNTS[scene.count - 1]}
    if scene.radius < SMALL_BELOW:
        said["size"] = "small"
    elif scene.radius > LARGE_ABOVE:
        said["size"] = "large"
    dx, dy = scene.x - SIZE / 2, scene.y - SIZE / 2
    if max(abs(dx), abs(dy)) < CENTRED:
        said["place"] = "middle"
    elif abs(dx) > OFF_CENTRE and abs(dx) > abs(dy):
        said["place"] = "left" if dx < 0 else "right"
    elif abs(dy) > OFF_CENTRE:
        said["place"] = "top" if dy < 0 else "bottom"
    if scene.light < DARK_BELOW:
        said["light"] = "dark"
    elif scene.light > BRIGHT_ABOVE:
        said["light"] = "bright"
    said["texture"] = "plain" if scene.texture == "plain" else "busy"
    return said


PLACE_PHRASES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}


def caption(scene: Scene, rng: np.random.Generator, keep: float = 0.6, tell_watermark: float = 0.2) -> str:
    """A caption that says each true word with probability `keep` (shape and colour more often)."""
    return phrase(choose_words(scene, rng, keep), scene, rng, tell_watermark)


def choose_words(scene: Scene, rng: np.random.Generator, keep: float = 0.6) -> dict[str, str]:
    chance = {"shape": 0.9, "colour": 0.8}
    return {k: w for k, w in attributes(scene).items() if rng.random() < chance.get(k, keep)}


def phrase(words: dict[str, str], scene: Scene, rng: np.random.Generator, tell_watermark: float = 0.2) -> str:
    """Words -> caption. A bare noun leaves the count open; `rng` picks between "busy" and the texture's own name."""
    noun = words.get("shape", "shape") + ("s" if words.get("count") in ("two", "three") else "")
    subject = " ".join(w for w in (words.get("count"), words.get("size"), words.get("colour"), noun) if w)
    parts = [subject]
    if "place" in words:
        parts[0] += " " + PLACE_PHRASES[words["place"]]
    texture = words.get("texture")
    if texture == "busy" and rng.random() < 0.5:
        texture = scene.texture
    ground = " ".join(w for w in (words.get("light"), texture) if w)
    if ground:
        parts.append(f"{ground} background")
    if scene.watermark != "none" and rng.random() < tell_watermark:
        parts.append("watermark")
    return ", ".join(parts)


def prompt(rng: np.random.Generator, leave_open: tuple[str, ...] = (), keep: float = 0.6) -> tuple[str, dict[str, str]]:
    """A prompt that some scene could satisfy, with the attributes that it names; those in `leave_open` never."""
    scene = sample_scene(rng, watermark_rate=0.0)
    words = {k: w for k, w in choose_words(scene, rng, keep).items() if k not in leave_open}
    return phrase(words, scene, rng), words


# --- drawing ---------------------------------------------------------------------------------------------------------


def _background(scene: Scene) -> np.ndarray:
    """(S, S, 3) in 0..1 at oversampled resolution."""
    s = SIZE * OVERSAMPLE
    yy, xx = np.mgrid[0:s, 0:s] / OVERSAMPLE
    contrast = 0.22 if scene.light < 0.6 else -0.22
    if scene.texture == "striped":
        mask = (xx / 16.0 + scene.texture_phase) % 1.0 < 0.45
    elif scene.texture == "dotted":
        u, v = (xx / 16.0 + scene.texture_phase) % 1.0 - 0.5, (yy / 16.0 + scene.texture_phase) % 1.0 - 0.5
        mask = u**2 + v**2 < 0.1
    else:
        mask = np.zeros_like(xx, dtype=bool)
    level = scene.light + contrast * mask
    return np.clip(level[..., None] + np.array(scene.tint), 0, 1)


def _outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Polygon of one shape; the areas of the four are made alike, so that size means the same for each."""
    if shape == "square":
        h = 0.88 * r
        return [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]
    if shape == "triangle":
        return [
            (x + 1.15 * r * math.sin(a), y + 0.15 * r - 1.15 * r * math.cos(a))
            for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)
        ]
    if shape == "star":
        return [
            (x + k * r * math.sin(i * math.pi / 5), y - k * r * math.cos(i * math.pi / 5))
            for i, k in enumerate((1.25, 0.46) * 5)
        ]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 40, endpoint=False)]


def draw(scene: Scene) -> np.ndarray:
    """(64, 64, 3) uint8."""
    canvas = Image.fromarray((_background(scene) * 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for dx, dy in group(scene.count, scene.radius):
        points = _outline(scene.shape, scene.x + dx, scene.y + dy, scene.radius)
        pen.polygon([(px * OVERSAMPLE, py * OVERSAMPLE) for px, py in points], fill=COLOURS[scene.colour])
    picture = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    if scene.watermark != "none":
        picture = stamp(picture, scene.watermark, np.random.default_rng(scene.watermark_seed))
    return np.asarray(picture)


MARK_WORDS = ("SAMPLE", "STOCK", "PREVIEW", "DEMO", "PROOF")


def _mark_layer(family: str, rng: np.random.Generator, word: str, font_px: float) -> Image.Image:
    """The mark alone, as an 8-bit coverage mask."""
    s = SIZE * OVERSAMPLE
    font = ImageFont.load_default(size=font_px * OVERSAMPLE)
    if family == "corner":
        layer = Image.new("L", (s, s))
        box, rim = font.getbbox(word), 2 * OVERSAMPLE
        right, low = rng.random() < 0.5, rng.random() < 0.5
        x = s - rim - box[2] if right else rim - box[0]
        y = s - rim - box[3] if low else rim - box[1]
        pen = ImageDraw.Draw(layer)
        pen.rectangle([x + box[0] - rim, y + box[1] - rim, x + box[2] + rim, y + box[3] + rim], fill=120)
        pen.text((x, y), word, fill=255, font=font)
        return layer
    big = Image.new("L", (2 * s, 2 * s))
    pen = ImageDraw.Draw(big)
    if family == "tiled":
        width, height = font.getlength(word + "  "), font_px * OVERSAMPLE * 1.9
        shift = rng.random()
        for row in range(int(2 * s / height) + 1):
            for column in range(-1, int(2 * s / width) + 1):
                pen.text(((column + shift + 0.5 * (row % 2)) * width, row * height), word, fill=255, font=font)
        angle = float(rng.uniform(15, 35))
    else:  # band: a bar across the diagonal with the word cut out of it
        thick = font_px * OVERSAMPLE * 1.4
        offset = float(rng.uniform(-0.2, 0.2)) * s
        pen.rectangle([0, s - thick / 2 + offset, 2 * s, s + thick / 2 + offset], fill=150)
        pen.text((s - font.getlength(word) / 2, s - font_px * OVERSAMPLE * 0.6 + offset), word, fill=255, font=font)
        angle = float(rng.choice([-1, 1])) * float(rng.uniform(30, 50))
    turned = big.rotate(angle, resample=Image.Resampling.BILINEAR)
    return turned.crop((s // 2, s // 2, s // 2 + s, s // 2 + s))


def stamp(picture: Image.Image, family: str, rng: np.random.Generator) -> Image.Image:
    """Lay a watermark of one family over a picture: white or black, opacity .45-.75, letters 9-12 pixels high."""
    layer = _mark_layer(family, rng, str(rng.choice(MARK_WORDS)), float(rng.uniform(9, 12)))
    cover = np.asarray(layer.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)[..., None] / 255
    base = np.asarray(picture, dtype=np.float32)
    ink = 255.0 if base.mean() < 150 else 0.0
    alpha = float(rng.uniform(0.45, 0.75))
    return Image.fromarray((base + (ink - base) * cover * alpha).clip(0, 255).astype(np.uint8))


def without_watermark(scene: Scene) -> Scene:
    return replace(scene, watermark="none")
