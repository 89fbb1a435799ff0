"""Feedback from files that the pack exported, without a database: pictures, prompts, and what was said of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..feedback import formats
from ..feedback.formats.bundle import Bundle, Picture, images_of, renamed
from ..feedback.formats.guards import UUID
from ..feedback.marks import Ranking
from ..feedback.media import decode
from ..feedback.records import Comparison, Rating
from .labels import Preference
from .pictures import Pictures
from .sources import NoPreferenceError

R = TypeVar("R", Rating, Comparison, Ranking)
FIRST = datetime.min.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class Exported:
    """Every picture of known prompt that was rated or compared. scores: 0..1, nan where it was only compared.

    left: what could not be used, in words. The pictures can be read inside `reading`.
    """

    pictures: Sequence[Picture]
    prompts: Sequence[str]
    scores: Sequence[float]
    preferences: Sequence[Preference]
    left: Sequence[str] = ()

    def pixels(self, index: int, multiple: int) -> Tensor:
        """(3, H, W) in 0..1, the middle of the picture in whole multiples. Raises BadPicture, BadData."""
        read = self.pictures[index].read
        assert read is not None  # the others were left out when the file was read # nosec B101
        image = torch.tensor(decode(read())[..., :3]).movedim(-1, 0).float() / 255
        height, width = (size // multiple * multiple for size in image.shape[1:])
        top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
        return image[:, top : top + height, left : left + width]

    def only(self, kept: Sequence[int]) -> Exported:
        """The pictures at these places, and what is about them alone."""
        place = {old: new for new, old in enumerate(kept)}
        known = [p for p in self.preferences if p.chosen in place and p.rejected in place]
        preferences = [replace(p, chosen=place[p.chosen], rejected=place[p.rejected]) for p in known]
        pictures = [self.pictures[i] for i in kept]
        return Exported(
            pictures, [self.prompts[i] for i in kept], [self.scores[i] for i in kept], preferences, self.left
        )

    def judged(self) -> Pictures:
        return Pictures((), self.prompts, self.scores, self.preferences)

    def digest(self) -> str:
        """Of what was said about which pictures: a run goes on only with the same."""
        told = [[p.key for p in self.pictures], list(self.prompts), list(self.scores)]
        return hashlib.sha256(repr((told, [vars(p) for p in self.preferences])).encode()).hexdigest()


@contextmanager
def reading(paths: Sequence[Path], axis: str, raters: Sequence[str] = ()) -> Iterator[Exported]:
    """What the files say on one axis, by these raters or by all. Files may hold the same pictures.

    Raises BadData, parquet.MissingPackage, and NoPreferenceError where nothing was said.
    """
    with ExitStack() as opened:
        whole = Bundle()
        for number, path in enumerate(paths):
            bundle = opened.enter_context(formats.reading(path, "somebody"))
            _add(whole, bundle, number)
        yield _judged(whole, axis, set(raters), ", ".join(path.name for path in paths))


def _add(whole: Bundle, bundle: Bundle, number: int) -> None:
    """Ids are the same picture in every file, other names are a file's own."""
    names = {key: key if UUID.fullmatch(key) else f"{number}/{key}" for key in bundle.pictures}
    for key, picture in bundle.pictures.items():
        whole.picture(replace(picture, key=names[key]))
    whole.said += [replace(one, record=renamed(one.record, names)) for one in bundle.said]
    whole.report.left += bundle.report.left


def _judged(bundle: Bundle, axis: str, raters: set[str], named: str) -> Exported:
    usable = {k for k, p in bundle.pictures.items() if p.read is not None and p.generation.prompt is not None}
    stars = _latest(bundle, Rating, axis, raters, usable)
    choices = _latest(bundle, Comparison, axis, raters, usable)
    orders = _latest(bundle, Ranking, axis, raters, usable)
    pairs = [pair for one in choices if (pair := _choice(one))]
    pairs += [(a, b, 1.0) for one in orders for a, b in combinations(one.image_ids, 2)]
    rated = {record.image_id for record in stars}
    compared = {key for a, b, _ in pairs for key in (a, b)}
    keys = [key for key in bundle.pictures if key in rated | compared]
    if len(keys) < 2:
        raise NoPreferenceError(
            f"{named} holds {len(bundle.pictures)} pictures, and {len(keys)} of them have a prompt and a rating or "
            f"comparison on the axis {axis!r}: at least two are needed, better 50 or more. Ratings are exported as "
            "imagefolder, comparisons as Pick-a-Pic; both files can be given."
        )
    place = {key: index for index, key in enumerate(keys)}
    given: dict[str, list[float]] = {}
    for record in stars:
        given.setdefault(record.image_id, []).append(record.value)
    scores = [sum(given[k]) / len(given[k]) if k in given else math.nan for k in keys]
    preferences = [Preference(place[a], place[b], weight) for a, b, weight in pairs]
    prompts = [str(bundle.pictures[key].generation.prompt) for key in keys]
    left = [f"{count} {what}" for what, count in bundle.report.left.items()]
    if lost := len(bundle.pictures) - len(usable):
        left.append(f"{lost} pictures without a prompt or file")
    return Exported([bundle.pictures[key] for key in keys], prompts, scores, preferences, left)


def _latest(bundle: Bundle, kind: type[R], axis: str, raters: set[str], usable: set[str]) -> list[R]:
    """What each rater said last of each picture, or of each pair or order of pictures."""
    found: dict[object, tuple[datetime, R]] = {}
    for record, at in bundle.of(kind):
        about = images_of(record)  # type: ignore[arg-type]
        if record.axis != axis or raters and record.rater not in raters or not usable >= set(about):
            continue
        key, time = (record.rater, frozenset(about)), at or FIRST
        if key not in found or time >= found[key][0]:
            found[key] = (time, record)
    return [record for _, record in found.values()]


def _choice(one: Comparison) -> tuple[str, str, float] | None:
    """(chosen, rejected, how much it counts) of a comparison that prefers one side."""
    if one.winner not in ("left", "right"):
        return None
    weight = 1.0 if one.strength is None else max(one.strength, 0.05)
    return (one.left, one.right, weight) if one.winner == "left" else (one.right, one.left, weight)
