"""The waiting room, without anybody who waits: time is a number here that the test moves."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from feedback_loop.feedback import gate
from feedback_loop.feedback.gate import Answer, GateKey, Question, WaitingRoom
from feedback_loop.feedback.marks import Ranking, Region
from feedback_loop.feedback.media import encode_png
from feedback_loop.feedback.records import Comment, Comparison, Conflict, InvalidRecord, NotFound, Rating, RequestKey

KEY = GateKey("run", "12:3", 0)
PICTURES = ("a", "b", "c")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def room(clock: Clock) -> WaitingRoom:
    return WaitingRoom(clock)


def question(mode: gate.Mode = "choose", ids: tuple[str, ...] = PICTURES) -> Question:
    return Question(mode, ids, (4, 6), "default", "skip")


def choose(id_: str = "b", rater: str = "ann") -> Answer:
    return Answer("choose", (id_,), rater)


def respond(room: WaitingRoom, key: GateKey, answer: Answer, request: RequestKey | None = None) -> Question | None:
    with room.answering(str(key), answer, request) as asked:
        return asked


def test_what_waits_is_listed_until_it_is_answered(room: WaitingRoom) -> None:
    waiting = room.enter(KEY, question(), 60)
    assert room.pending() == [waiting]
    assert room.answered(waiting) is None
    respond(room, KEY, choose())
    assert room.answered(waiting) == choose()
    assert room.pending() == []
    room.leave(waiting, "ended")


def test_of_many_answers_at_once_one_counts(room: WaitingRoom) -> None:
    waiting = room.enter(KEY, question(), 60)
    start = threading.Barrier(16)

    def answer(number: int) -> bool:
        start.wait(60)
        try:
            respond(room, KEY, choose(rater=f"rater {number}"))
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(answer, range(16)))
    assert won.count(True) == 1
    given = room.answered(waiting)
    assert given is not None and given.rater == f"rater {won.index(True)}"


def test_whoever_is_too_late_is_told_why(room: WaitingRoom, clock: Clock) -> None:
    waiting = room.enter(KEY, question(), 60)
    respond(room, KEY, choose())
    for _ in ("while it still stands there", "after it left"):
        with pytest.raises(Conflict, match="it was answered by ann"):
            respond(room, KEY, choose("c", "bob"))
        room.leave(waiting, "ended without an answer")
    stopped = room.enter(GateKey("run", "7"), question(), 60)
    room.leave(stopped, "was stopped")
    with pytest.raises(Conflict, match="it was stopped"):
        respond(room, GateKey("run", "7"), choose())
    with pytest.raises(NotFound):
        respond(room, GateKey("never", "7"), choose())


def test_the_same_request_sent_twice_is_one_answer(room: WaitingRoom) -> None:
    waiting = room.enter(KEY, question(), 60)
    request = RequestKey("key", "hash")
    assert respond(room, KEY, choose(), request) == waiting.question
    assert respond(room, KEY, choose(), request) is None
    room.leave(waiting, "ended")
    assert respond(room, KEY, choose(), request) is None
    with pytest.raises(Conflict):
        respond(room, KEY, choose("a"), RequestKey("another", "hash"))


def test_an_answer_that_could_not_be_stored_leaves_the_question_open(room: WaitingRoom, clock: Clock) -> None:
    waiting = room.enter(KEY, question(), 60)
    with pytest.raises(OSError), room.answering(str(KEY), choose()):
        clock.now += 100
        assert not room.expired(waiting), "somebody's answer is being stored"
        with pytest.raises(Conflict, match="being stored"):
            respond(room, KEY, choose("a"))
        raise OSError("no space left on device")
    assert room.answered(waiting) is None
    assert room.expired(waiting)


def test_time_runs_out_and_then_no_answer_counts(room: WaitingRoom, clock: Clock) -> None:
    waiting = room.enter(KEY, question(), 60)
    clock.now += 59
    assert (room.seconds_left(waiting), room.expired(waiting)) == (1, False)
    clock.now += 2
    assert (room.seconds_left(waiting), room.expired(waiting)) == (0, True)
    with pytest.raises(Conflict, match="ran out of time"):
        respond(room, KEY, choose())


def test_without_a_timeout_it_waits_without_end(room: WaitingRoom, clock: Clock) -> None:
    waiting = room.enter(KEY, question(), None)
    clock.now += 1e9
    assert room.seconds_left(waiting) is None and not room.expired(waiting)


def test_items_of_a_list_are_apart_and_each_has_the_whole_time(room: WaitingRoom, clock: Clock) -> None:
    first, second = (room.enter(GateKey("run", "5", index), question(), 60) for index in (0, 1))
    elsewhere = room.enter(GateKey("run", "6"), question(), 60)
    clock.now += 50
    respond(room, first.key, choose())
    assert (room.answered(first), room.answered(second)) == (choose(), None)
    # 50 of 60 seconds went by; only the rest of the same list gets its time anew.
    assert (room.seconds_left(second), room.seconds_left(elsewhere)) == (60, 10)


def test_an_interrupt_stops_every_wait_of_its_run_and_of_no_other(room: WaitingRoom) -> None:
    first, second = (room.enter(GateKey("run", "5", index), question(), 60) for index in (0, 1))
    other = room.enter(GateKey("other run", "5"), question(), 60)
    room.stop("run")
    assert (room.stopped(first), room.stopped(second), room.stopped(other)) == (True, True, False)
    assert room.pending() == [other]


def test_the_same_key_waits_once(room: WaitingRoom) -> None:
    waiting = room.enter(KEY, question(), 60)
    with pytest.raises(Conflict):
        room.enter(KEY, question(), 60)
    room.leave(waiting, "ended")
    respond_again = room.enter(KEY, question(), 60)
    respond(room, KEY, choose())
    assert room.answered(respond_again) == choose()


def test_nothing_piles_up_over_many_runs(room: WaitingRoom) -> None:
    for number in range(1000):
        waiting = room.enter(GateKey(f"run {number}", "5"), question(), 60)
        respond(room, waiting.key, choose())
        room.leave(waiting, "ended")
    assert room.pending() == []
    with pytest.raises(NotFound):
        respond(room, GateKey("run 0", "5"), choose())
    with pytest.raises(Conflict):
        respond(room, GateKey("run 999", "5"), choose())


def test_somebody_was_seen_or_not(room: WaitingRoom, clock: Clock) -> None:
    assert not room.seen_within(15)
    room.seen()
    assert room.seen_within(15)
    clock.now += 16
    assert not room.seen_within(15)


def mask(height: int = 4, width: int = 6) -> bytes:
    return encode_png(np.full((height, width), 255, np.uint8))


@pytest.mark.parametrize(
    ("mode", "answer", "says"),
    [
        ("choose", Answer("choose", (), "ann"), "exactly one"),
        ("choose", Answer("choose", ("a", "b"), "ann"), "exactly one"),
        ("choose", Answer("choose", ("x",), "ann"), "not asked about"),
        ("choose", Answer("approve", ("a",), "ann"), "asks to choose"),
        ("rank", Answer("rank", ("a", "b"), "ann"), "all 3 pictures"),
        ("rank", Answer("rank", ("a", "b", "b"), "ann"), "twice"),
        ("approve", Answer("approve", (), "ann"), "at least one"),
        ("approve", Answer("reject", ("a",), "ann"), "leave images empty"),
        ("choose", Answer("choose", ("a",), "ann", b"no picture"), "mask can't be used"),
        ("choose", Answer("choose", ("a",), "ann", mask(6, 4)), "4 x 6 pixels, the picture 6 x 4"),
        ("choose", Answer("choose", ("a",), "ann", mask(), "x"), "which of the pictures"),
        ("choose", Answer("reject", (), "ann", mask()), "which of the pictures"),
        ("choose", Answer("choose", ("a",), "ann", None, "a"), "no mask came"),
        ("choose", Answer("choose", ("a",), "ann", comment=""), "comment is empty"),
    ],
)
def test_an_answer_to_another_question_is_refused(room: WaitingRoom, mode, answer: Answer, says: str) -> None:
    waiting = room.enter(KEY, question(mode), 60)
    with pytest.raises(InvalidRecord, match=says):
        respond(room, KEY, answer)
    assert room.pending() == [waiting]


def test_what_was_chosen_is_better_than_each_of_the_others() -> None:
    # Left is whichever came first in the batch, so that who won does not say where it stood.
    said = gate.judgements(question(), choose("b"))
    assert said == [
        Comparison("a", "b", "right", "ann", policy="gate"),
        Comparison("b", "c", "left", "ann", policy="gate"),
    ]


def test_a_ranking_is_kept_as_one() -> None:
    answer = Answer("rank", ("c", "a", "b"), "ann")
    assert gate.judgements(question("rank"), answer) == [Ranking(("c", "a", "b"), "ann")]
    assert gate.judgements(question("rank", ("a",)), Answer("rank", ("a",), "ann")) == []


@pytest.mark.parametrize(
    ("answer", "values"),
    [(Answer("approve", ("b",), "ann"), [0, 1, 0]), (Answer("reject", (), "ann"), [0, 0, 0])],
)
def test_approval_is_a_rating_on_its_own_axis(answer: Answer, values: list[float]) -> None:
    said = gate.judgements(question("approve"), answer)
    assert said == [Rating(id_, value, "ann", "approval", 0, 1) for id_, value in zip(PICTURES, values, strict=True)]


@pytest.mark.parametrize(
    ("mode", "answer"),
    [
        ("choose", Answer("choose", ("b",), "ann", lead_time=4.5)),
        ("rank", Answer("rank", ("c", "a", "b"), "ann", lead_time=4.5)),
        ("approve", Answer("approve", ("b",), "ann", lead_time=4.5)),
    ],
)
def test_everything_that_was_judged_has_the_time_that_the_answer_took(mode, answer: Answer) -> None:
    said = gate.judgements(question(mode), answer)
    assert said
    assert {one.lead_time for one in said if not isinstance(one, Region | Comment)} == {4.5}


def test_mask_and_comment_are_kept_with_the_picture_that_they_are_about() -> None:
    answer = Answer("choose", ("b",), "ann", mask(), "a", "too many fingers")
    *_, region, comment = gate.judgements(question(), answer)
    assert (region.image_id, region.shape, region.label, region.mask) == ("a", "mask", "marked", mask())
    assert comment == Comment("b", "too many fingers", "ann")
    rejected = gate.judgements(question("approve"), Answer("reject", (), "ann", comment="all blurred"))
    assert [one.image_id for one in rejected if isinstance(one, Comment)] == list(PICTURES)
