"""People in an evaluation: pairs go into the rating queue blind, and a later run of the node counts the votes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..feedback import blind
from ..feedback.blind import BlindPair, Tally
from .compat import io, store
from .evaluating import Drawn, Evaluation, EvaluationError
from .recording import collection_name

ALONE, ASK = "judges alone", "people too, blind"


def people_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "people",
        optional=True,
        tooltip="Let people compare the pairs as well, without knowing which picture is whose: in the sidebar, under "
        "Compare. Run the node again to count their votes.",
        options=[
            io.DynamicCombo.Option(ALONE, []),
            io.DynamicCombo.Option(
                ASK,
                [
                    io.String.Input(
                        "collection",
                        default="blind test",
                        tooltip="The collection that the pairs are put into. Choose it in the sidebar to answer.",
                    ),
                    io.Int.Input(
                        "at_most",
                        default=30,
                        min=1,
                        max=1000,
                        tooltip="How many of the pairs people are asked about, evenly over all prompts.",
                    ),
                ],
            ),
        ],
    )


def collection_of(people: dict[str, Any] | None) -> str:
    """Where people are asked, "" where they are not. Raises EvaluationError for a collection without a name."""
    if not people or people.get("people") != ASK:
        return ""
    try:
        return collection_name(str(people["collection"]))
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def asked(drawn: Drawn, people: dict[str, Any] | None) -> Tally | None:
    """Puts the pairs before people, once for the same pictures, and gives their votes so far; None where nobody is.

    Raises EvaluationError where the store can't be written.
    """
    if not (collection := collection_of(people)):
        return None
    kept, name = store(), f"{drawn.name()} in {collection}"[:200]
    count = min(len(drawn.rows), int((people or {})["at_most"]))
    chosen = [index * len(drawn.rows) // count for index in range(count)]
    a, b = (_pixels(images) for images in (drawn.a, drawn.b))
    if kept.read_only is not None:
        raise EvaluationError(f"People can't be asked: {kept.read_only} Choose '{ALONE}', or make it writable.")
    blind.put(kept, name, collection, [BlindPair(drawn.rows[i], a[i], b[i], drawn.seeds[i]) for i in chosen])
    return kept.ask(lambda connection: blind.tally(connection, name))


def voting(votes: Tally | None) -> bool:
    """Whether people still have pairs to answer."""
    return votes is not None and votes.answered < votes.pairs


def _pixels(images: Tensor) -> Any:
    return (images.movedim(1, -1).clamp(0, 1) * 255).round().byte().cpu().numpy()


def votes_so_far(people: dict[str, Any] | None) -> str:
    """Changes with every judgement where people are asked, so that the node runs again then."""
    if not people or people.get("people") != ASK:
        return ""
    return str(store().feedback().revision)


@dataclass(frozen=True)
class _Kept:
    settings: Any
    objects: tuple[weakref.ref[Any], ...]
    evaluation: Evaluation


_last: list[_Kept] = []
"""The last evaluation that people are asked about, so that counting its votes draws no picture again."""


def once(objects: tuple[Any, ...], settings: Any, keep: bool, evaluate: Callable[[], Evaluation]) -> Evaluation:
    """What `evaluate` gives, or gave the last time that it was asked of the very same objects and settings."""
    present = [one for one in objects if one is not None]
    for kept in _last:
        same = len(kept.objects) == len(present) and all(
            ref() is one for ref, one in zip(kept.objects, present, strict=True)
        )
        if same and kept.settings == settings:
            return kept.evaluation
    found = evaluate()
    _last[:] = [_Kept(settings, tuple(weakref.ref(one, _forget) for one in present), found)] if keep else []
    return found


def _forget(gone: weakref.ref[Any]) -> None:
    """Nobody can ask for it again once an object that it was made of is gone, and it holds all the pictures."""
    _last[:] = [kept for kept in _last if not any(ref is gone for ref in kept.objects)]
