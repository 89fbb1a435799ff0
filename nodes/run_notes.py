"""What happened to the pictures of a run while they were made, for the nodes further down that record them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

REMEMBERED = 64  # runs

RATER = "rules"
"""Under this name what rules did is noted as tags of the pictures."""


@dataclass(frozen=True)
class Note:
    """Of one sampling: the nodes whose rules it obeyed, how many pictures it made, and what happened to each."""

    nodes: tuple[str, ...]
    count: int
    texts: Mapping[int, Sequence[str]]


_notes: OrderedDict[str, list[Note]] = OrderedDict()
_lock = threading.Lock()


def note(nodes: Iterable[str], count: int, texts: Mapping[int, Sequence[str]]) -> None:
    """Keeps what happened in the run that is going on."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    if context is None:
        return
    with _lock:
        _notes.setdefault(context.prompt_id, []).append(Note(tuple(nodes), count, texts))
        while len(_notes) > REMEMBERED:
            _notes.popitem(last=False)


def of_run(prompt_id: str | None, above: Iterable[str], count: int) -> list[list[str]]:
    """What happened to each of `count` pictures of a run, by rules of the nodes `above` the one that records them."""
    known = set(above)
    found: list[list[str]] = [[] for _ in range(count)]
    with _lock:
        for one in _notes.get(prompt_id or "", ()):
            if one.count == count and known.issuperset(one.nodes):
                for place, texts in one.texts.items():
                    found[place] += texts
    return found
