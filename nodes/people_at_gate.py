"""People at the gate as a reward: an epoch's pictures are asked about as `FeedbackGate` asks, and the answers score."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.utils
from torch import Tensor

from ..feedback.gate import Answer, Gate, Mode, Question, check_count
from ..training.runs import write_whole
from .gate import FAIL, POLL, key_of, stop_if_interrupted
from .gate_room import ROOM, announce
from .people import NobodyAnsweredError, asked_once

if TYPE_CHECKING:
    from ..feedback.store import FeedbackStore


class PeopleAtGate:
    """Scores are what people answer at the gate about each prompt's pictures, 0 to 1; see `scores_of`.

    All questions of an epoch wait at once, and are answered in any order; each answer is kept as feedback by the gate,
    and its scores in `folder`, so that a run that was cancelled while it waited asks about the others alone. group: how
    many pictures in a row belong to one question. hours: how long the next answer is waited for.
    """

    def __init__(
        self, kept: Callable[[], FeedbackStore], collection: str, folder: Path, hours: float, mode: Mode, group: int,
        workflow_id: str | None = None,
    ) -> None:  # fmt: skip
        check_count(mode, group)
        self.kept, self.collection, self.folder, self.hours = kept, collection, folder, hours
        self.mode: Mode = mode
        self.group, self.workflow_id = group, workflow_id

    def __call__(self, images: Tensor, prompts: Sequence[str], drawn: str) -> list[float]:
        ids = asked_once(self.kept, self.collection, self.folder, images, prompts, drawn)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        questions = [
            Question(self.mode, tuple(ids[k : k + self.group]), size, self.collection, FAIL, self.workflow_id)
            for k in range(0, len(ids), self.group)
        ]
        scores = self._answered(questions, self.folder / f"answered-{drawn}.json")
        return [scores[image_id] for image_id in ids]

    def _answered(self, questions: Sequence[Question], note: Path) -> dict[str, float]:
        """The score of each picture; waits for those that nobody has answered for yet."""
        found: dict[str, float] = json.loads(note.read_text(encoding="utf-8"))["scores"] if note.exists() else {}
        left = {i: question for i, question in enumerate(questions) if question.image_ids[0] not in found}
        bar = comfy.utils.ProgressBar(len(questions))
        with ExitStack() as stack:
            stack.callback(announce)
            gates = {i: self._entered(stack, i, question) for i, question in left.items()}
            announce()
            while gates:
                for i, gate in list(gates.items()):
                    if (answer := self._looked(gate, len(questions) - len(gates), len(questions))) is not None:
                        found |= scores_of(questions[i], answer)
                        write_whole(note, json.dumps({"scores": found}))
                        del gates[i]
                        announce()
                bar.update_absolute(len(questions) - len(gates))
                time.sleep(POLL if gates else 0)
        return found

    def _entered(self, stack: ExitStack, place: int, question: Question) -> Gate:
        gate = ROOM.enter(key_of(place=place), question, 3600 * self.hours)
        stack.callback(ROOM.leave, gate, "was stopped")
        return gate

    def _looked(self, gate: Gate, answered: int, of: int) -> Answer | None:
        """Raises InterruptProcessingException, and NobodyAnsweredError where time is up."""
        if (answer := ROOM.answered(gate)) is not None:
            return answer
        stop_if_interrupted(gate)
        if ROOM.expired(gate):
            raise NobodyAnsweredError(
                f"{answered} of {of} questions about this epoch's pictures were answered, and the next one was not "
                f"within {self.hours:g} hours. The answers are kept: run this node again, and it asks for the others."
            )
        return None


def scores_of(question: Question, answer: Answer) -> dict[str, float]:
    """An order: 1 for the best, evenly down to 0 for the worst. Else 1 for what was chosen or approved and 0 for the
    others; all are 0 where all were rejected, which says nothing of which is better."""
    if answer.action == "rank":
        last = max(len(answer.image_ids) - 1, 1)
        return {image_id: 1 - place / last for place, image_id in enumerate(answer.image_ids)}
    return {image_id: float(image_id in answer.image_ids) for image_id in question.image_ids}
