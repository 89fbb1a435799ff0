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
    """Of one sampling: the node that made it and which call of that node's, the nodes whose rules it obeyed, how many
    pictures it made, and what happened to each."""

    maker: str
    call: int | None
    rules: tuple[str, ...]
    count: int
    texts: Mapping[int, Sequence[str]]


_notes: OrderedDict[str, list[Note]] = OrderedDict()
_lock = threading.Lock()


def note(rules: Iterable[str], count: int, texts: Mapping[int, Sequence[str]]) -> None:
    """Keeps what happened in the sampling that is going on; also one in which nothing did, since others of its node
    may follow."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    if context is None:
        return
    made = Note(context.node_id, context.list_index, tuple(rules), count, texts)
    with _lock:
        _notes.setdefault(context.prompt_id, []).append(made)
        while len(_notes) > REMEMBERED:
            _notes.popitem(last=False)


def of_run(prompt_id: str | None, above: Iterable[str], count: int) -> list[list[str]]:
    """What happened to each of `count` pictures, by samplings of the nodes `above` the one that records them now.

    A node that samples several times hands out the pictures in that order. What other samplers on the same ruled model
    did is left out, as is what another call of the same sampler did, where nodes run once for each item of a list.
    """
    from comfy_execution.utils import get_executing_context

    context, known = get_executing_context(), set(above)
    call = None if context is None else context.list_index
    makers: dict[str, list[Note]] = {}
    with _lock:
        for one in _notes.get(prompt_id or "", ()):
            if one.call == call and known.issuperset((one.maker, *one.rules)):
                makers.setdefault(one.maker, []).append(one)
    found: list[list[str]] = [[] for _ in range(count)]
    for notes in makers.values():
        texts = [one.texts.get(place, ()) for one in notes for place in range(one.count)]
        if len(texts) == count:
            for place, said in enumerate(texts):
                found[place] += said
    return found
