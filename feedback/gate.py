"""A waiting room for runs that stop until a person has answered: who waits for what, answered once, from any thread.

Nothing here waits by itself. Whoever entered asks from time to time how things stand, so that it can look for an
interrupt in between; what an answer says of the pictures is made here too, as records for the store.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

from .checks import Conflict, InvalidRecord, NotFound, checked_text
from .marks import MAX_RANKED, Ranking, Region
from .media import BadPicture, decode_mask
from .records import Comment, Comparison, Rating, RequestKey

Mode = Literal["choose", "rank", "approve"]
Action = Literal["choose", "rank", "approve", "reject"]
Record = Rating | Comparison | Ranking | Region | Comment

POLICY = "gate"
"""How a pair came to be asked, as comparisons note it."""

APPROVAL = "approval"
"""The axis of what was approved (1) or rejected (0)."""

MARKED = "marked"
"""The label of a region that was marked while a run waited."""

REMEMBERED = 256


@dataclass(frozen=True)
class GateKey:
    """One wait: a run, the node in it (an execution id such as 12:3 inside a subgraph), the place in a list."""

    prompt_id: str
    node_id: str
    list_index: int = 0

    def __str__(self) -> str:
        return f"{self.prompt_id}.{self.node_id}.{self.list_index}"


@dataclass(frozen=True)
class Question:
    """What is asked: how to judge which pictures, all of one size (height, width), in the order of the batch."""

    mode: Mode
    image_ids: tuple[str, ...]
    size: tuple[int, int]
    collection: str
    on_timeout: str
    workflow_id: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a person decided. image_ids: those that go on, best first. mask: an 8-bit grey PNG, as large as they are."""

    action: Action
    image_ids: tuple[str, ...]
    rater: str
    mask: bytes | None = None
    mask_of: str | None = None
    comment: str | None = None
    lead_time: float | None = None  # seconds that it took to decide, from when the pictures were shown

    @property
    def masked(self) -> str | None:
        """The picture that the mask lies on: the first that goes on, unless another is named."""
        if self.mask is None:
            return None
        return self.mask_of or next(iter(self.image_ids), None)


@dataclass
class Gate:
    """One wait that is going on. Its fields are read and changed by the waiting room alone."""

    key: GateKey
    question: Question
    seconds: float | None
    deadline: float | None
    answer: Answer | None = None
    taken: bool = False  # somebody's answer is being stored
    stopped: bool = False


@dataclass(frozen=True)
class Closed:
    """How a wait ended, for whoever answers too late; `request` is the one that answered it."""

    why: str
    request: RequestKey | None = None


@dataclass
class WaitingRoom:
    """All waits of this process. `clock` gives seconds that never go back."""

    clock: Callable[[], float] = time.monotonic
    _gates: dict[str, Gate] = field(default_factory=dict)
    _closed: OrderedDict[str, Closed] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen: float | None = None

    def enter(self, key: GateKey, question: Question, seconds: float | None) -> Gate:
        """From now on the question can be answered, for so many seconds (None: without end). Leave in `finally`."""
        with self._lock:
            if str(key) in self._gates:
                raise Conflict(f"The run waits already at {key}.")
            self._closed.pop(str(key), None)
            deadline = None if seconds is None else self.clock() + seconds
            gate = self._gates[str(key)] = Gate(key, question, seconds, deadline)
            return gate

    def leave(self, gate: Gate, why: str) -> None:
        """Ends the wait, however it ended. `why` completes "This run no longer waits: it ..."."""
        with self._lock:
            if self._gates.pop(str(gate.key), None) is not None:
                known = self._closed.get(str(gate.key), Closed(why))
                self._remember(gate.key, known)

    def pending(self) -> list[Gate]:
        """The waits that nobody has answered yet, in the order in which they began."""
        with self._lock:
            return [gate for gate in self._gates.values() if gate.answer is None and not gate.stopped]

    def seconds_left(self, gate: Gate) -> float | None:
        """How long an answer is waited for; None: without end. Never below 0."""
        with self._lock:
            return self._left(gate)

    def expired(self, gate: Gate) -> bool:
        """Whether time is up. It is not while somebody's answer is being stored."""
        with self._lock:
            return self._left(gate) == 0 and not gate.taken

    def answered(self, gate: Gate) -> Answer | None:
        with self._lock:
            return gate.answer

    def stop(self, prompt_id: str) -> None:
        """Ends all waits of a run: ComfyUI tells an interrupt to one of them only."""
        with self._lock:
            for gate in self._gates.values():
                gate.stopped |= gate.key.prompt_id == prompt_id

    def stopped(self, gate: Gate) -> bool:
        with self._lock:
            return gate.stopped

    def seen(self) -> None:
        """Somebody asked what there is to answer, so somebody is there."""
        with self._lock:
            self._seen = self.clock()

    def seen_within(self, seconds: float) -> bool:
        with self._lock:
            return self._seen is not None and self.clock() - self._seen <= seconds

    @contextmanager
    def answering(self, key: str, answer: Answer, request: RequestKey | None = None) -> Iterator[Question | None]:
        """Store what was said inside: the run goes on after it, and waits as before if it fails.

        Gives the question, or None where this very request has answered it before. Raises NotFound for a wait that
        never was, Conflict for one that is over or is being answered, InvalidRecord for an answer to another question.
        """
        if self._answered_by(key, request):
            yield None
            return
        check(self._open(key).question, answer)  # outside the lock: a mask takes a while to read
        gate = self._take(key)
        try:
            yield gate.question
            self._deliver(gate, answer, request)
        finally:
            with self._lock:
                gate.taken = gate.answer is not None

    def _answered_by(self, key: str, request: RequestKey | None) -> bool:
        with self._lock:
            closed = self._closed.get(key)
            return closed is not None and request is not None and closed.request == request

    def _open(self, key: str) -> Gate:
        with self._lock:
            return self._still_open(key)

    def _take(self, key: str) -> Gate:
        with self._lock:
            gate = self._still_open(key)
            gate.taken = True
            return gate

    def _still_open(self, key: str) -> Gate:
        if (closed := self._closed.get(key)) is not None:
            raise Conflict(f"This run no longer waits: it {closed.why}.")
        if (gate := self._gates.get(key)) is None:
            raise NotFound("There is no run that waits under this key.")
        if gate.taken:
            raise Conflict("Somebody else's answer is being stored at this moment.")
        if gate.stopped or self._left(gate) == 0:
            raise Conflict("This run no longer waits: it ran out of time or was stopped.")
        return gate

    def _deliver(self, gate: Gate, answer: Answer, request: RequestKey | None) -> None:
        with self._lock:
            gate.answer = answer
            self._remember(gate.key, Closed(f"was answered by {answer.rater}", request))
            for other in self._gates.values():
                same_node = (other.key.prompt_id, other.key.node_id) == (gate.key.prompt_id, gate.key.node_id)
                if same_node and other.seconds is not None:
                    # The pictures of a list are asked about one after the other: each has the whole time.
                    other.deadline = self.clock() + other.seconds

    def _left(self, gate: Gate) -> float | None:
        return None if gate.deadline is None else max(0.0, gate.deadline - self.clock())

    def _remember(self, key: GateKey, closed: Closed) -> None:
        self._closed[str(key)] = closed
        while len(self._closed) > REMEMBERED:
            self._closed.popitem(last=False)


def check_count(mode: Mode, count: int) -> None:
    """Raises InvalidRecord for a batch that nobody can be asked about."""
    if count == 0:
        raise InvalidRecord("There is no picture to ask about; connect a batch of at least one.")
    if mode == "rank" and count > MAX_RANKED:
        raise InvalidRecord(f"{count} pictures are too many to rank; send at most {MAX_RANKED}, or set mode to choose.")


def check(question: Question, answer: Answer) -> None:
    """Raises InvalidRecord for an answer that does not fit the question."""
    if answer.action not in get_args(Action) or answer.action not in (question.mode, "reject"):
        raise InvalidRecord(f"This run asks to {question.mode}; the answer can be {question.mode} or reject.")
    known, given = set(question.image_ids), answer.image_ids
    if len(set(given)) < len(given) or not known.issuperset(given):
        raise InvalidRecord("The answer names a picture twice, or one that was not asked about.")
    wrong = {
        "choose": len(given) != 1 and "Choose exactly one picture.",
        "rank": len(given) != len(known) and f"Put all {len(known)} pictures in order, best first.",
        "approve": not given and "Approve at least one picture, or reject.",
        "reject": bool(given) and "Whoever rejects lets no picture go on; leave images empty.",
    }[answer.action]
    if wrong:
        raise InvalidRecord(wrong)
    if answer.comment is not None:
        checked_text(answer.comment, "The comment", empty=False)
    _check_mask(question, answer)


def _check_mask(question: Question, answer: Answer) -> None:
    if answer.mask is None:
        if answer.mask_of is not None:
            raise InvalidRecord("mask_of names a picture, but no mask came with it.")
        return
    if answer.masked not in question.image_ids:
        raise InvalidRecord("Say in mask_of which of the pictures the mask lies on.")
    try:
        shape = decode_mask(answer.mask).shape
    except BadPicture as error:
        raise InvalidRecord(f"The mask can't be used: {error}") from error
    if shape != question.size:
        raise InvalidRecord(
            f"The mask has {shape[1]} x {shape[0]} pixels, the picture {question.size[1]} x {question.size[0]}; "
            "they must agree."
        )


def judgements(question: Question, answer: Answer) -> list[Record]:
    """What the answer says of the pictures: one is better than each other, an order, or which of them were approved.

    All have the time that the whole answer took.
    """
    said: list[Record] = []
    if answer.action == "choose":
        said += _beats_the_others(question, answer)
    elif answer.action == "rank":
        several = len(answer.image_ids) > 1
        said += [Ranking(answer.image_ids, answer.rater, lead_time=answer.lead_time)] if several else []
    else:
        yes, rater, seconds = answer.image_ids, answer.rater, answer.lead_time
        said += [Rating(id_, float(id_ in yes), rater, APPROVAL, 0, 1, seconds) for id_ in question.image_ids]
    if answer.mask is not None and answer.masked is not None:
        said.append(Region(answer.masked, "mask", (), MARKED, answer.rater, mask=answer.mask))
    if answer.comment is not None:
        said += [Comment(id_, answer.comment, answer.rater) for id_ in _commented(question, answer)]
    return said


def _beats_the_others(question: Question, answer: Answer) -> Iterator[Comparison]:
    (chosen,) = answer.image_ids
    place = question.image_ids.index(chosen)
    how = {"rater": answer.rater, "policy": POLICY, "lead_time": answer.lead_time}
    for index, other in enumerate(question.image_ids):
        if index < place:
            yield Comparison(other, chosen, "right", **how)
        elif index > place:
            yield Comparison(chosen, other, "left", **how)


def _commented(question: Question, answer: Answer) -> tuple[str, ...]:
    """What a comment is about: all that were rejected or approved together, else the best."""
    if answer.action == "reject":
        return question.image_ids
    return answer.image_ids if answer.action == "approve" else answer.image_ids[:1]
