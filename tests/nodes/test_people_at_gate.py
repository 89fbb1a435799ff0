"""People at the gate as the reward of FeedbackReinforceLora: each prompt's pictures are asked about, answers score."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from feedback_loop.feedback.checks import InvalidRecord
from feedback_loop.feedback.gate import Answer, Gate, Mode, Question, judgements
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import people_at_gate, prompt_lists, reinforce, reinforce_watch
from feedback_loop.nodes.gate_room import ROOM
from feedback_loop.nodes.people import NobodyAnsweredError
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.tests.nodes.own_store import own_store
from feedback_loop.tests.nodes.test_reinforce import moved, run
from feedback_loop.training.online import Epoch

THREE = ("a", "b", "c")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedbackStore]:
    opened = own_store(tmp_path, monkeypatch, reinforce, reinforce_watch, prompt_lists)
    monkeypatch.setattr(people_at_gate, "POLL", 0.01)
    yield opened
    opened.close()


def asking(mode: str, hours: float = 1.0) -> dict[str, Any]:
    return {"scored_by": {"scored_by": "people, at the gate", "collection": "asked", "mode": mode, "hours": hours}}


def first(gate: Gate) -> Answer:
    """The first picture is the best, or the only good one."""
    ids, mode = gate.question.image_ids, gate.question.mode
    return Answer(mode, ids if mode == "rank" else ids[:1], "ann", lead_time=1.0)


@contextmanager
def somebody(kept: FeedbackStore, answers: Callable[[Gate], Answer] = first, most: int = 99) -> Iterator[list[Gate]]:
    """A person who answers what waits, the newest question first, as the gate's route does; gives what was answered."""
    over, seen = threading.Event(), list[Gate]()

    def work() -> None:
        while not over.is_set() and len(seen) < most:
            for gate in ROOM.pending()[::-1][:1]:
                with ROOM.answering(str(gate.key), answers(gate)) as question:
                    assert question is not None
                    kept.add_said(judgements(question, answers(gate)))
                seen.append(gate)
            time.sleep(0.01)

    person = threading.Thread(target=work)
    person.start()
    try:
        yield seen
    finally:
        over.set()
        person.join()


def rewards(folder: Path) -> list[float]:
    return list(Epoch.load(folder / "runs" / "mine_00001" / "rollouts" / "epoch-00000-0.safetensors").rewards)


@pytest.mark.parametrize("mode", ["choose", "rank", "approve"])
def test_what_people_answer_about_each_prompts_pictures_is_the_reward(
    kept: FeedbackStore, tmp_path: Path, mode: str
) -> None:
    """Two prompts of two pictures, the first of which is preferred each time: rewards 1, 0, 1, 0. The answers are kept
    as any answer at a gate is: a pair or an order of both, or two ratings on the axis of approval."""
    with somebody(kept) as seen:
        output = run(tiny_models.sd15(), epochs=1, **asking(mode))
    assert moved(output.args[0]) and rewards(tmp_path) == [1.0, 0.0, 1.0, 0.0]
    assert sorted(gate.key.list_index for gate in seen) == [0, 1]
    assert [id_ for gate in sorted(seen, key=lambda g: g.key.list_index) for id_ in gate.question.image_ids] == (
        kept.ids_of("asked")
    )
    stats = kept.stats()
    assert (stats.ratings, stats.comparisons + stats.kinds.get("ranking", 0)) == (
        (4, 0) if mode == "approve" else (0, 2)
    )
    assert ROOM.pending() == []


def test_answers_outlast_a_run_that_ends_while_it_waits(kept: FeedbackStore, tmp_path: Path) -> None:
    """One of two questions is answered before time is up. Run again, the node asks the other one alone, of the same
    pictures; those that were all rejected teach nothing."""
    soon = asking("choose", hours=2 / 3600)
    with somebody(kept, most=1) as seen, pytest.raises(NobodyAnsweredError, match="1 of 2 questions.*run this node"):
        run(tiny_models.sd15(), epochs=1, **soon)
    (answered,) = seen
    asked = kept.ids_of("asked")
    assert ROOM.pending() == []

    def reject(gate: Gate) -> Answer:
        return Answer("reject", (), "ann")

    with somebody(kept, reject) as seen:
        run(tiny_models.sd15(), epochs=1, **soon)
    (other,) = seen
    assert kept.ids_of("asked") == asked
    assert {*answered.question.image_ids, *other.question.image_ids} == set(asked)
    chosen = asked.index(answered.question.image_ids[0])
    assert rewards(tmp_path) == [float(place == chosen) for place in range(4)]


@pytest.mark.parametrize(
    ("mode", "answer", "scores"),
    [
        ("rank", Answer("rank", ("c", "a", "b"), "ann"), {"c": 1.0, "a": 0.5, "b": 0.0}),
        ("choose", Answer("choose", ("b",), "ann"), {"a": 0.0, "b": 1.0, "c": 0.0}),
        ("approve", Answer("approve", ("a", "b"), "ann"), {"a": 1.0, "b": 1.0, "c": 0.0}),
        ("rank", Answer("reject", (), "ann"), {"a": 0.0, "b": 0.0, "c": 0.0}),
    ],
)
def test_scores_run_from_0_to_1(mode: Mode, answer: Answer, scores: dict[str, float]) -> None:
    question = Question(mode, THREE, (8, 8), "c", "fail")
    assert people_at_gate.scores_of(question, answer) == scores


def test_more_than_can_be_ranked_is_refused_before_anything_is_drawn(kept: FeedbackStore) -> None:
    with pytest.raises(InvalidRecord, match="65 pictures are too many to rank"):
        run(tiny_models.sd15(), group_size=65, **asking("rank"))
    assert kept.ids_of("asked") == []
