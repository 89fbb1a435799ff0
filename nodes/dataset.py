"""FeedbackDataset: picks out of what was said, by whom, where, when and how, for the nodes that learn from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

import torch

from ..feedback.pairs import LABELS
from ..feedback.results import ComparedImages, Feedback, Kind, Part, RatedImage
from .compat import FEEDBACK, io, store, ui

if TYPE_CHECKING:
    from ..feedback.store import FeedbackStore

EXTREMES = 6  # pictures shown from either end
COLUMNS = 6
SIDE = 128  # pixels of a picture in the preview
WEIGHT = 0.2  # of an interaction beside a rating

DATES = {
    "since": "Only what was said from this day on, such as 2026-01-31, or from this time on, as 2026-01-31 18:30.",
    "until": "Only what was said up to the end of this day, or before this time.",
}

KINDS: dict[Kind, tuple[str, bool, str]] = {
    "rating": ("ratings", True, "Whether stars and other ratings count."),
    "comparison": ("comparisons", True, "Whether choices between two pictures count."),
    "ranking": ("rankings", True, "Whether orders of several pictures count, with every pair in them."),
    "interaction": (
        "interactions",
        False,
        "Whether it counts that a picture was saved, deleted, made again and the like, where nobody rated it. Such are "
        "only recorded while that is turned on in the settings.",
    ),
}
"""Kinds of judgement: the input's name, its default and its tooltip."""


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas, without blanks around them, each once."""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def moment(text: str, name: str, end: bool = False) -> datetime | None:
    """A date, or a date and a time, on this machine's clock; None for no text. end: a date alone is over with its day.

    Raises ValueError for anything else.
    """
    if not (text := text.strip()):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{name} is '{text[:40]}', which is no date. Write it as 2026-01-31, or with a time as 2026-01-31 18:30."
        ) from None
    if end and len(text) <= len("2026-01-31"):
        found += timedelta(days=1)
    return found.astimezone()


def mean_values(rated: Sequence[RatedImage]) -> dict[str, float]:
    """The mean rating in 0..1 of each picture, best first; what was only concluded counts by its weight."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for rating in rated:
        sums[rating.image_id][0] += rating.weight * rating.value
        sums[rating.image_id][1] += rating.weight
    means = {image_id: total / weight for image_id, (total, weight) in sums.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def shares_won(compared: Sequence[ComparedImages]) -> dict[str, float]:
    """Of the comparisons of each picture, the share that it won, best first; a tie is half won."""
    won: dict[str, list[float]] = defaultdict(list)
    for pair in compared:
        left = LABELS.get(pair.winner, 0.0)
        won[pair.left].append(left)
        won[pair.right].append(1 - left if pair.winner in LABELS else 0.0)
    shares = {image_id: sum(given) / len(given) for image_id, given in won.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def nothing_found(feedback: Feedback, collections: Sequence[str]) -> str:
    """The sentence for a query that no judgement answers: what was asked, and what there is."""
    if feedback.collection is not None and feedback.collection not in collections:
        known = ", ".join(f"“{name}”" for name in sorted(collections)) or "none yet"
        return f"There is no collection named “{feedback.collection}”. Collections with pictures: {known}."
    where = f"in the collection “{feedback.collection}”" if feedback.collection else "in any collection"
    who = f" by {', '.join(feedback.raters)}" if feedback.raters else ""
    often = f" from {feedback.min_ratings} people each" if feedback.min_ratings > 1 else ""
    what = f"on the axis “{feedback.axis}”" if feedback.tag is None else f"with the tag “{feedback.tag}”"
    narrow = [name for name in ("since", "until") if getattr(feedback, name) is not None]
    narrow += ["split"] if feedback.split != "all" else []
    also = f" Or widen {' and '.join(narrow)}: nothing may be left between them." if narrow else ""
    return (
        f"Nothing was rated{who}{often} {what} {where} yet. Give some pictures stars in a Capture pictures node, or "
        f"loosen what is chosen here, then run this again.{also}"
    )


def extremes(values: dict[str, float]) -> list[str]:
    """The best and the worst pictures; all of them when they are few."""
    ids = list(values)
    return ids if len(ids) <= 2 * EXTREMES else ids[:EXTREMES] + ids[-EXTREMES:]


def preview(kept: FeedbackStore, values: dict[str, float], label: Callable[[float], str]) -> torch.Tensor:
    """The best and the worst pictures with a label for their value, as IMAGE (1, H, W, 3)."""
    from .plots import grid

    shown = extremes(values)
    pictures = torch.stack([fitted(torch.tensor(kept.image_pixels(image_id))) for image_id in shown])
    return grid(pictures, COLUMNS, [label(values[image_id]) for image_id in shown], SIDE)


def found_by(kept: FeedbackStore, feedback: Feedback) -> tuple[int, int, torch.Tensor]:
    """(how many pictures are rated, how many pairs compared, a preview of the best and worst). Raises ValueError."""
    rated, compared = kept.rated(feedback), kept.compared(feedback)
    if not rated and not compared:
        raise ValueError(nothing_found(feedback, list(kept.stats().collections)))
    values = mean_values(rated) if rated else shares_won(compared)
    return len(values) if rated else 0, len(compared), preview(kept, values, label_of(rated, feedback))


def label_of(rated: Sequence[RatedImage], feedback: Feedback) -> Callable[[float], str]:
    """How a value in 0..1 is written under a picture."""
    if not rated:
        return lambda share: f"won {share:.0%}"
    if feedback.tag is not None:
        return lambda share: f"tagged {share:.0%}"
    return lambda value: f"{1 + 4 * value:.1f} stars"


def fitted(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (H, W, 3) as float (SIDE, SIDE, 3) in 0..1, whole, on white where it is not square."""
    picture = pixels.permute(2, 0, 1)[None].float() / 255
    scale = SIDE / max(picture.shape[-2:])
    size = [max(1, round(length * scale)) for length in picture.shape[-2:]]
    mode = "nearest" if scale >= 1 else "area"
    small = torch.nn.functional.interpolate(picture, size, mode=mode)[0]
    canvas = torch.ones(3, SIDE, SIDE)
    top, left = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    canvas[:, top : top + size[0], left : left + size[1]] = small
    return canvas.permute(1, 2, 0)


def narrowed(
    since: str = "",
    until: str = "",
    tag: str = "",
    split: Part = "all",
    interaction_weight: float = WEIGHT,
    **kinds: bool,
) -> dict[str, Any]:
    """The fields of a Feedback that the later inputs stand for; kinds: `ratings`, `comparisons` and so on."""
    taken = tuple(kind for kind, (name, default, _) in KINDS.items() if kinds.get(name, default))
    return {
        "since": moment(since, "since"),
        "until": moment(until, "until", end=True),
        "tag": tag.strip() or None,
        "split": split,
        "kinds": (*taken, "tag"),
        "interaction_weight": interaction_weight,
    }


def _later_inputs() -> list[io.Input]:
    """Inputs that came later: last, so that saved workflows keep their values, and optional for old scripts."""
    dates = {
        name: io.String.Input(name, default="", optional=True, advanced=True, tooltip=f"{tooltip} Empty sets no limit.")
        for name, tooltip in DATES.items()
    }
    kinds = [
        io.Boolean.Input(name, default=default, optional=True, advanced=True, tooltip=tooltip)
        for name, default, tooltip in KINDS.values()
    ]
    weight = io.Float.Input(
        "interaction_weight",
        default=WEIGHT,
        min=0.0,
        max=1.0,
        step=0.05,
        optional=True,
        advanced=True,
        tooltip="How much an interaction says beside a rating: 0 nothing, 1 as much. Only if interactions are used.",
    )
    tag = io.String.Input(
        "tag",
        default="",
        optional=True,
        advanced=True,
        tooltip=(
            "Learn a tag instead of ratings: which pictures have it, and which were tagged or rated without it. Empty "
            "takes ratings."
        ),
    )
    split = io.Combo.Input(
        "split",
        options=list(get_args(Part)),
        default="all",
        optional=True,
        advanced=True,
        tooltip=(
            "all takes every picture. train leaves out the pictures of one prompt in ten, held_out takes only those, "
            "always the same ones: to test on what was not trained on."
        ),
    )
    return [*dates.values(), *kinds, weight, tag, split]


class FeedbackDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackDataset",
            display_name="Collect feedback",
            category="feedback/capture",
            description=(
                "Picks out of everything that was said of pictures, for the nodes that learn from it. It looks again "
                "whenever something is said, changed or taken back."
            ),
            search_aliases=["ratings", "feedback dataset", "load ratings", "preferences"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "collection",
                    default="default",
                    tooltip="Only pictures of this collection, as named in Capture pictures. Empty takes all of them.",
                ),
                io.String.Input(
                    "raters",
                    default="",
                    tooltip="Only what these people said: names separated by commas. Empty takes everybody.",
                ),
                io.String.Input(
                    "axis",
                    default="overall",
                    tooltip="What was judged. The stars of Capture pictures are on the axis overall.",
                    advanced=True,
                ),
                io.Int.Input(
                    "min_ratings",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="How many people must have rated a picture for it to count. 1 takes every rated picture.",
                    advanced=True,
                ),
                *_later_inputs(),
            ],
            outputs=[
                FEEDBACK.Output(display_name="feedback", tooltip="The chosen feedback, as it stands at this moment."),
                io.Int.Output(display_name="count", tooltip="How many rated pictures were found."),
                io.Int.Output(
                    display_name="comparisons",
                    tooltip="How many pairs of pictures were found that somebody compared, those out of rankings too.",
                ),
                io.Image.Output(display_name="preview", tooltip="The best and the worst pictures in one picture."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> int:
        return store().feedback().revision

    @classmethod
    def execute(cls, collection: str, raters: str, axis: str, min_ratings: int, **more: Any) -> io.NodeOutput:
        kept = store()
        query = kept.feedback(collection.strip() or None, names(raters), axis.strip() or "overall")
        feedback = replace(query, min_ratings=min_ratings, **narrowed(**more))
        count, comparisons, shown = found_by(kept, feedback)
        return io.NodeOutput(feedback, count, comparisons, shown, ui=ui.PreviewImage(shown, cls=cls))


NODES: list[type[io.ComfyNode]] = [FeedbackDataset]
