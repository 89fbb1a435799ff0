"""Between the store and a bundle: what a FEEDBACK query names goes out, what a file holds comes in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..marks import Ranking, Region
from ..media import BadPicture, content_hash, decode, pixel_hash
from ..pairs import rated_pairs, split_of
from ..records import Comparison, Feedback, InvalidRecord, NotFound, Rating, RequestKey
from . import masks
from .bundle import KINDS, BadData, Bundle, Picture, Report, Said, images_of, renamed
from .guards import UUID

if TYPE_CHECKING:
    from ..store import FeedbackStore

AT_ONCE = 200  # judgements in one transaction, so that clicks get in between
PICTURES_AT_ONCE = 16

DERIVED = "from stars"
"""The policy of a comparison that nobody made: it follows from two ratings."""


# --- out -------------------------------------------------------------------------------------------------------------


def from_store(kept: FeedbackStore, feedback: Feedback, axes: Sequence[str] = (), pairs: bool = False) -> Bundle:
    """What the query names, on its axis and on `axes`, with the pictures that it is about.

    pairs: also comparisons that follow from the ratings of one rater for pictures of one prompt. Interactions are not
    taken: they are about a person's habits.
    """
    ids = kept.ids_of(feedback.collection)
    said = [Said(record, at) for record, at in kept.judged(ids, feedback.revision)]
    said = [one for one in said if _asked(one, feedback, {feedback.axis, *axes})]
    if pairs:
        said += _from_ratings(kept, feedback)
    about = {key for one in said for key in images_of(one.record)}
    bundle = Bundle(said=said)
    for id_ in (id_ for id_ in ids if id_ in about):
        image = kept.image(id_)
        made = replace(image.generation, prompt_id=None, node_id=None, batch_index=0, versions={})
        bundle.picture(Picture(id_, _reader(kept, id_), made, image.width, image.height))
    return bundle if feedback.split == "all" else _of_split(bundle, feedback.split == "held_out")


def _reader(kept: FeedbackStore, id_: str) -> Callable[[], bytes]:
    return lambda: kept.image_file(id_).read_bytes()


def _asked(one: Said, feedback: Feedback, axes: set[str]) -> bool:
    record, at = one.record, one.at
    if feedback.raters and record.rater not in feedback.raters:
        return False
    if getattr(record, "axis", feedback.axis) not in axes:
        return False
    if at is not None and (feedback.since and at < feedback.since or feedback.until and at >= feedback.until):
        return False
    kind = KINDS[type(record)].removesuffix("s")
    return kind in feedback.kinds or kind not in ("rating", "comparison", "ranking", "tag")


def _of_split(bundle: Bundle, held_out: bool) -> Bundle:
    """The pictures of one part and what is about them alone; prompts of one group are never in both."""
    prompts = {key: picture.generation.prompt for key, picture in bundle.pictures.items()}
    pictures = {k: p for k, p in bundle.pictures.items() if (split_of(prompts[k]) == "test") == held_out}
    return Bundle(pictures, [one for one in bundle.said if pictures.keys() >= set(images_of(one.record))])


def _from_ratings(kept: FeedbackStore, feedback: Feedback) -> Iterator[Said]:
    for pair in rated_pairs(kept.rated(replace(feedback, tag=None)), across_prompts=False):
        winner: Any = "left" if pair.label == 1 else "right"
        record = Comparison(pair.left, pair.right, winner, pair.rater, feedback.axis, pair.gap, DERIVED)
        yield Said(record)


# --- in --------------------------------------------------------------------------------------------------------------


@dataclass
class Taken:
    """What came in: pictures that are new, those that were there, judgements; `report` has the rest in words."""

    pictures: int
    known: int
    judgements: int
    report: Report

    def text(self) -> str:
        """The same in sentences."""
        there = f", {self.known} were there already" if self.known else ""
        first = f"{self.pictures} pictures came in{there}; {self.judgements} judgements were added."
        rest = self.report.text().split("\n", 1)
        return first + ("\n" + rest[1] if len(rest) > 1 else "")


def into_store(
    kept: FeedbackStore,
    bundle: Bundle,
    collection: str,
    prefix: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Taken:
    """Adds the pictures and judgements; sending the same file twice adds nothing twice.

    A picture that the store has already (same id, same pixels) stays the one it is. prefix: put before the names of all
    raters, so that nobody speaks as somebody else. on_progress: pictures done, of how many. Raises BadData if nothing
    of the file could be taken in.
    """
    report = Report(left=bundle.report.left, first_refused=bundle.report.first_refused)
    names, known = _take_pictures(kept, bundle, collection, report, on_progress)
    said = list(_renamed(bundle, names, prefix, report))
    there = _there(kept, known)
    new = [one for one in said if not _drop(there, one)]
    report.leave("judgements: they are there already", len(said) - len(new))
    added = _add(kept, new, report)
    if not names:
        raise BadData("Nothing of the file could be taken in.\n" + report.text().split("\n", 1)[-1])
    return Taken(len(names) - len(known), len(known), added, report)


def _take_pictures(
    kept: FeedbackStore, bundle: Bundle, collection: str, report: Report, on_progress: Callable[[int, int], None]
) -> tuple[dict[str, str], set[str]]:
    """(ids by key, those of pictures that were there)."""
    names: dict[str, str] = {}
    known: set[str] = set()
    new: list[tuple[str, bytes, Picture]] = []
    for number, (key, picture) in enumerate(bundle.pictures.items(), 1):
        data = _data_of(picture, report)
        if (id_ := _stored(kept, picture, data)) is not None:
            names[key] = id_
            known.add(id_)
        elif data is not None:
            new.append((key, data, picture))
        elif picture.read is None:
            report.leave("pictures: their files are not there, and URLs are never fetched")
        if len(new) >= PICTURES_AT_ONCE:
            names |= _add_pictures(kept, new, collection, report)
            new = []
        on_progress(number, len(bundle.pictures))
    return names | _add_pictures(kept, new, collection, report), known


def _data_of(picture: Picture, report: Report) -> bytes | None:
    """The bytes of the picture's file; None, and a note, for what is no picture that we keep."""
    if picture.read is None:
        return None
    try:
        data = picture.read()
        decode(data)
    except (BadPicture, BadData) as error:
        report.refuse(f"picture {picture.key[:100]!r}: {error}")
        return None
    return data


def _stored(kept: FeedbackStore, picture: Picture, data: bytes | None) -> str | None:
    if not UUID.fullmatch(picture.key) or picture.read is not None and data is None:
        return None
    try:
        image = kept.image(picture.key)
    except NotFound:
        return None
    same = data is None or pixel_hash(decode(data)) == image.pixel_hash
    return image.id if same else None


def _add_pictures(
    kept: FeedbackStore, new: list[tuple[str, bytes, Picture]], collection: str, report: Report
) -> dict[str, str]:
    try:
        ids = kept.add_images([(data, picture.generation) for _, data, picture in new], collection)
        return dict(zip((key for key, _, _ in new), ids, strict=True))
    except InvalidRecord as error:
        if len(new) == 1:
            report.refuse(f"picture {new[0][0][:100]!r}: {error}")
            return {}
    return {key: id_ for one in new for key, id_ in _add_pictures(kept, [one], collection, report).items()}


def _renamed(bundle: Bundle, names: dict[str, str], prefix: str, report: Report) -> Iterator[Said]:
    for one in bundle.said:
        try:
            record = renamed(one.record, names)
            yield Said(replace(record, rater=prefix + record.rater) if prefix else record, one.at)
        except KeyError:
            report.leave(f"{KINDS[type(one.record)]}: of pictures that did not come in")
        except InvalidRecord as error:
            report.refuse(f"a judgement: {error}")


def _there(kept: FeedbackStore, known: Iterable[str]) -> dict[Any, list[datetime | None]]:
    """When each of the judgements on these pictures was given."""
    there: dict[Any, list[datetime | None]] = {}
    for record, at in kept.judged(sorted(known), kept.revision()):
        there.setdefault(_alike(record), []).append(at)
    return there


def _alike(record: Any) -> Any:
    """What a judgement says, apart from what some formats drop or write down in another way.

    Comparisons without sides and strength, others without lead times; coordinates to nine digits, masks by pixels.
    """
    if isinstance(record, Comparison):
        sides = {"left": record.left, "right": record.right}
        said = sides.get(record.winner, record.winner)
        return frozenset((record.left, record.right)), said, record.rater, record.axis
    if isinstance(record, Region):
        geometry = tuple((round(x, 9), round(y, 9)) for x, y in record.geometry)
        mask = None if record.mask is None else masks.from_png(record.mask, "A mask").tobytes()
        return replace(record, geometry=geometry, mask=mask)
    if isinstance(record, Rating):
        return replace(record, lead_time=None, comment=None)
    return replace(record, lead_time=None) if isinstance(record, Ranking) else record


def _drop(there: dict[Any, list[datetime | None]], one: Said) -> bool:
    """Whether the same was said at the same time, or, where the file has no times, at any; each counts once."""
    times = there.get(_alike(one.record), [])
    same = next((at for at in times if one.at in (None, at)), None)
    if same is not None:
        times.remove(same)
    return same is not None


def _add(kept: FeedbackStore, said: list[Said], report: Report) -> int:
    added = 0
    for start in range(0, len(said), AT_ONCE):
        block = said[start : start + AT_ONCE]
        added += _add_block(kept, block, f"import {start}", report)
    return added


def _add_block(kept: FeedbackStore, block: list[Said], name: str, report: Report) -> int:
    """Adds all of a block in one transaction; if the store refuses one, each by itself."""
    body = content_hash(json.dumps([name, [repr((one.record, one.at)) for one in block]]).encode())
    try:
        kept.add_judged([(one.record, one.at) for one in block], RequestKey(f"import {body}", body))
    except InvalidRecord as error:
        if len(block) == 1:
            report.refuse(f"a judgement: {error}")
            return 0
        return sum(_add_block(kept, [one], f"{name} {n}", report) for n, one in enumerate(block))
    return len(block)
