"""FeedbackGate: a run stops until a person has chosen, ranked or approved its pictures, and goes on with those."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from comfy.model_management import InterruptProcessingException, throw_exception_if_processing_interrupted
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context

from ..feedback.gate import Answer, Gate, GateKey, Question, check_count
from ..feedback.media import decode_mask
from .compat import REWARD, io
from .gate_room import ROOM, announce, somebody_is_there
from .learning import measured
from .learning import pictures_of as colours_of
from .recording import collection_name, generation_of, given, pictures_of, positive_input, record, seed_input

if TYPE_CHECKING:
    from torch import Tensor

SKIP, FIRST, BEST, FAIL, WAIT = "skip", "first", "best by reward", "fail", "wait"
OUTCOMES = [SKIP, FIRST, BEST, FAIL]
DONE = {"choose": "chosen", "rank": "ranked", "approve": "approved", "reject": "rejected"}
POLL = 0.1  # seconds between looks at the answer, the clock and ComfyUI's interrupt
GRACE = 15.0  # seconds that a page takes at most to come back after a reload
DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Decision:
    """Which pictures of the batch go on, in order (none: the run ends here), with what, and how it came to that."""

    places: tuple[int, ...]
    how: str
    mask: bytes | None = None
    mask_of: int | None = None
    comment: str = ""


def decided(question: Question, answer: Answer) -> Decision:
    """The answer, with the places of pictures in the batch instead of their ids."""
    place = question.image_ids.index
    places = tuple(place(id_) for id_ in answer.image_ids)
    masked = None if answer.masked is None else place(answer.masked)
    how = f"{DONE[answer.action]} by {answer.rater}"
    return Decision(places, how, answer.mask, masked, answer.comment or "")


@dataclass(frozen=True)
class NoAnswer:
    """Nobody answered: why, and the setting that says what happens then."""

    why: str
    setting: str
    outcome: str


def decided_without(no: NoAnswer, scores: Sequence[float] | None) -> Decision:
    """What happens when nobody answers. Raises ValueError where that is to fail."""
    if no.outcome == FAIL:
        raise ValueError(
            f"{no.why}, and {no.setting} is fail. Answer in the node while it waits, or choose another {no.setting}."
        )
    logging.info("Feedback gate: %s; %s.", no.why, no.outcome)
    best = 0 if scores is None else scores.index(max(scores))
    return Decision({SKIP: (), FIRST: (0,), BEST: (best,)}[no.outcome], f"{no.why}: {no.outcome}")


def outputs_of(images: Tensor, decision: Decision) -> tuple[Any, ...]:
    """IMAGE (K,H,W,C), MASK (K,H,W), comment, index of the first; blockers where nothing goes on."""
    if not decision.places:
        return (ExecutionBlocker(None),) * 4
    masks = torch.zeros((len(decision.places), *images.shape[1:3]))
    if decision.mask is not None and decision.mask_of in decision.places:
        pixels = torch.from_numpy(decode_mask(decision.mask).copy())
        masks[decision.places.index(decision.mask_of)] = pixels.float() / 255
    return images[torch.tensor(decision.places)], masks, decision.comment, decision.places[0]


@dataclass(frozen=True)
class Patience:
    """What happens when nobody answers in time, and when no page is open in which to answer."""

    seconds: int
    on_timeout: str
    without_client: str
    grace: float  # for so many seconds there may be nobody


async def wait(gate: Gate, patience: Patience) -> Answer | NoAnswer:
    """Waits. Raises InterruptProcessingException, for all gates of the run: the flag is down once one saw it."""
    absent = 0.0
    while True:
        if (answer := ROOM.answered(gate)) is not None:
            return answer
        stop_if_interrupted(gate)
        if ROOM.expired(gate):
            why = f"Nobody answered within {patience.seconds} seconds"
            return NoAnswer(why, "on_timeout", patience.on_timeout)
        if somebody_is_there() or patience.without_client == WAIT:
            absent = 0.0
        elif absent >= patience.grace:
            return NoAnswer("No page is open in which to answer", "without_client", patience.without_client)
        await asyncio.sleep(POLL)
        absent += POLL


def stop_if_interrupted(gate: Gate) -> None:
    try:
        throw_exception_if_processing_interrupted()
    except InterruptProcessingException:
        ROOM.stop(gate.key.prompt_id)
        raise
    if ROOM.stopped(gate):
        raise InterruptProcessingException


async def ask(key: GateKey, question: Question, patience: Patience) -> Answer | NoAnswer:
    """Shows the question to every page until it is answered, or is not to be answered any more; see `wait`."""
    gate = ROOM.enter(key, question, patience.seconds or None)
    why = "was stopped"
    try:
        announce()
        said = await wait(gate, patience)
        why = "went on without an answer"
        return said
    finally:
        # Also when the run is interrupted or ComfyUI cancels this task, neither of which is an Exception.
        ROOM.leave(gate, why)
        announce()


def key_of(node_id: str = "", place: int | None = None) -> GateKey:
    """Which run, node and list item is being executed; place: of a question, in the stead of the item's."""
    context = get_executing_context()
    if context is None:
        return GateKey(str(uuid.uuid4()), node_id, place or 0)
    return GateKey(
        context.prompt_id, node_id or str(context.node_id), (context.list_index or 0) if place is None else place
    )


def scores_for_best(images: Tensor, reward: Any, outcomes: tuple[str, ...]) -> list[float] | None:
    """Scores where one of the outcomes needs them. Raises ValueError when no reward is connected for it."""
    if BEST not in outcomes:
        return None
    if reward is None:
        raise ValueError(
            f"'{BEST}' needs a reward, but none is connected. Connect one, or set on_timeout and without_client to "
            "something else."
        )
    return measured(reward, colours_of(images))


def workflow_of(hidden: Any) -> tuple[bool, str | None]:
    """(whether a page sent this run, the id of the workflow that it showed): a script sends no workflow."""
    workflow = (hidden.extra_pnginfo or {}).get("workflow")
    id_ = workflow.get("id") if isinstance(workflow, dict) else None
    return workflow is not None, id_ if isinstance(id_, str) else None


class FeedbackGate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackGate",
            display_name="Wait for a choice",
            category="feedback/capture",
            description=(
                "Stops the run, shows its pictures and waits until you choose one, rank them, or approve or reject "
                "them. The run goes on with those, and what you chose is kept as feedback."
            ),
            search_aliases=[
                "pause",
                "image chooser",
                "preview chooser",
                "approve",
                "human in the loop",
                "select image",
            ],
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The pictures to ask about. They are recorded as by Capture pictures."
                ),
                io.Combo.Input(
                    "mode",
                    options=["choose", "rank", "approve"],
                    tooltip="choose: one goes on. rank: all go on, best first. approve: those that you approve go on.",
                ),
                io.Int.Input(
                    "timeout",
                    default=600,
                    min=0,
                    max=7 * DAY,
                    tooltip="How many seconds to wait; the node counts them down. 0 waits without end.",
                ),
                io.Combo.Input(
                    "on_timeout",
                    options=OUTCOMES,
                    tooltip="What happens when time is up. skip: nothing after this node runs. first: the first "
                    "picture goes on. best by reward: the one that the reward likes best. fail: the run ends with an "
                    "error.",
                ),
                io.Combo.Input(
                    "without_client",
                    options=[*OUTCOMES, WAIT],
                    tooltip="What happens when no page is open in which to answer, as in runs of a script: the same, "
                    "or wait until somebody opens one.",
                ),
                io.String.Input(
                    "collection",
                    default="default",
                    tooltip="A name for pictures that belong together, such as a project. Feedback is picked by it.",
                ),
                io.Boolean.Input(
                    "ask_again",
                    optional=True,
                    default=True,
                    tooltip="On: ask in every run. Off: a run with the same pictures goes on with the last answer, as "
                    "ComfyUI does with every node that has nothing new to do.",
                    advanced=True,
                ),
                REWARD.Input("reward", optional=True, tooltip="Finds the best picture for 'best by reward'."),
                positive_input(),
                seed_input(),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures that go on, best first."),
                io.Mask.Output(display_name="mask", tooltip="What you painted over; black where you did not."),
                io.String.Output(display_name="comment", tooltip="What you wrote, or nothing."),
                io.Int.Output(display_name="index", tooltip="Which picture goes on (the first), counted from 0."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, ask_again: bool = True, **inputs: object) -> str:
        return str(uuid.uuid4()) if ask_again else ""

    @classmethod
    async def execute(
        cls,
        images: Tensor,
        mode: Any,
        timeout: int,
        on_timeout: str,
        without_client: str,
        collection: str,
        ask_again: bool = True,
        reward: Any = None,
        positive: str | None = None,
        seed: int | None = None,
    ) -> io.NodeOutput:
        name, pictures = collection_name(collection), pictures_of(images)
        check_count(mode, len(pictures))
        scores = scores_for_best(images, reward, (on_timeout, without_client))
        from_page, workflow_id = workflow_of(cls.hidden)
        ids = record(pictures, generation_of(cls.hidden, given(positive, None, seed)), name, None)
        size = (images.shape[1], images.shape[2])
        question = Question(mode, tuple(ids), size, name, on_timeout, workflow_id)
        grace = GRACE if from_page or somebody_is_there() else 0.0
        patience = Patience(timeout, on_timeout, without_client, grace)
        key = key_of(str(cls.hidden.unique_id))
        said = await ask(key, question, patience)
        decision = decided(question, said) if isinstance(said, Answer) else decided_without(said, scores)
        shown = {"images": [ids[place] for place in decision.places], "how": decision.how, "key": str(key)}
        return io.NodeOutput(*outputs_of(images, decision), ui={"feedback_gate": [shown]})


NODES: list[type[io.ComfyNode]] = [FeedbackGate]
