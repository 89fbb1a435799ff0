"""Bundles of generated records: every kind, with the corners that formats stumble over."""

from __future__ import annotations

import io
import random
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
from PIL import Image

from feedback_loop.feedback.formats.bundle import Bundle, Picture, Said
from feedback_loop.feedback.marks import Ranking, Region, Tag, WordMark
from feedback_loop.feedback.media import decode
from feedback_loop.feedback.records import Comment, Comparison, Generation, Lora, Rating

WORDS = ["a", "red", "кот", "猫", "with", '"quotes"', "<img>", "=1+1", "two,commas", "emoji🙂", "back\\slash"]
RATERS = ["ana", "Ünal", "=cmd|' /C calc'!A0", "o'neil; DROP TABLE rating", "李"]
START = datetime(2025, 3, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)


def png(random_: random.Random, width: int = 16, height: int = 12, grey: bool = False) -> bytes:
    """A PNG of noise."""
    noise = np.random.default_rng(random_.getrandbits(32))
    pixels = noise.integers(0, 256, (height, width) if grey else (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def generated(seed: int, pictures: int = 6, said: int = 60) -> Bundle:
    """A bundle of `pictures` and about `said` judgements of every kind."""
    random_ = random.Random(seed)
    bundle = Bundle()
    prompts = [" ".join(random_.choices(WORDS, k=random_.randint(1, 6))) for _ in range(2)]
    for n in range(pictures):
        data, size = png(random_), (16, 12)
        made = _generation(random_, prompts[n % 2])
        key = str(uuid.UUID(int=random_.getrandbits(128), version=4))
        bundle.picture(Picture(key, lambda data=data: data, made, *size))
    keys = list(bundle.pictures)
    makers: list[Callable[[random.Random, list[str], Bundle], Any]] = [
        _rating, _comparison, _ranking, _region, _word_mark, _tag, _comment
    ]  # fmt: skip
    for n in range(said):
        record = makers[n % len(makers)](random_, keys, bundle)
        bundle.said.append(Said(record, START + timedelta(seconds=n, microseconds=random_.randint(0, 999_999))))
    return bundle


def _generation(random_: random.Random, prompt: str) -> Generation:
    if random_.random() < 0.2:
        return Generation(prompt=prompt)
    loras = None if random_.random() < 0.5 else (Lora("style.safetensors", 0.8, None), Lora("more", -1.5, 0.25))
    return Generation(
        prompt, random_.choice([None, "", "blurry"]), str(2**64 - 1), random_.randint(1, 50), 7.1, "euler", "karras",
        0.35, "model v1.safetensors", loras,
    )  # fmt: skip


def _rating(random_: random.Random, keys: list[str], bundle: Bundle) -> Rating:
    axis = random_.choice(["overall", "how <well> it's lit & framed"])
    who = random_.choice(RATERS)
    if random_.random() < 0.7:
        return Rating(random_.choice(keys), float(random_.randint(1, 5)), who, axis)
    return Rating(random_.choice(keys), random_.uniform(-1, 1), who, axis, -1.0, 1.0, 3.25)


def _comparison(random_: random.Random, keys: list[str], bundle: Bundle) -> Comparison:
    left, right = random_.sample(keys, 2)
    winner = random_.choice(["left", "right", "tie", "both_bad", "skip"])
    return Comparison(left, right, winner, random_.choice(RATERS), strength=random_.choice([None, 0.25]))


def _ranking(random_: random.Random, keys: list[str], bundle: Bundle) -> Ranking:
    return Ranking(tuple(random_.sample(keys, random_.randint(3, 5))), random_.choice(RATERS))


def _region(random_: random.Random, keys: list[str], bundle: Bundle) -> Region:
    shape = random_.choice(["point", "rect", "polygon", "mask"])
    count = {"point": 1, "rect": 2, "polygon": random_.randint(3, 7), "mask": 0}[shape]
    points = tuple((random_.random(), random_.random()) for _ in range(count))
    if shape == "rect":
        (x0, y0), (x1, y1) = points
        points = ((min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1)))
    mask = png(random_, grey=True) if shape == "mask" else None
    severity, comment = random_.choice([None, 0.5]), random_.choice([None, "six fingers"])
    label = random_.choice(["artifact", "watermark", "a & b"])
    return Region(random_.choice(keys), shape, points, label, random_.choice(RATERS), severity, comment, mask)


def _word_mark(random_: random.Random, keys: list[str], bundle: Bundle) -> WordMark:
    key = random_.choice(keys)
    words = (bundle.pictures[key].generation.prompt or "").split()
    index = random_.randrange(len(words))
    label = random_.choice(["misaligned", "missing", "good"])
    return WordMark(key, index, words[index], label, random_.choice(RATERS))


def _tag(random_: random.Random, keys: list[str], bundle: Bundle) -> Tag:
    return Tag(random_.choice(keys), random_.choice(["high quality", "=HYPERLINK()", "мой"]), random_.choice(RATERS))


def _comment(random_: random.Random, keys: list[str], bundle: Bundle) -> Comment:
    text = random_.choice(["nice", "<script>alert(1)</script>", "two\nlines", "\tindented"])
    return Comment(random_.choice(keys), text, random_.choice(RATERS))


def comparable(record: Any) -> Any:
    """The record with coordinates to nine digits and masks as pixels, so that equal ones are equal."""
    if not isinstance(record, Region):
        return record
    geometry = tuple((round(x, 9), round(y, 9)) for x, y in record.geometry)
    mask = None if record.mask is None else decode(record.mask)[..., 0].tobytes()
    return replace(record, geometry=geometry, mask=mask)


def counted(said: Iterable[Said]) -> list[str]:
    """What was said, and when, without order."""
    return sorted(repr((comparable(one.record), one.at)) for one in said)


def pixels(bundle: Bundle) -> dict[str, bytes]:
    """The pixels of the pictures that have a file."""
    return {key: decode(p.read()).tobytes() for key, p in bundle.pictures.items() if p.read is not None}
