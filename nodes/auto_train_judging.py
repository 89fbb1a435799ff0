"""A candidate and what is in use on the same prompts and seeds: compared blindly by people, or scored by a reward."""

from __future__ import annotations

import secrets
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..feedback import blind, evaluation
from ..feedback.blind import BlindPair, Tally
from ..feedback.checks import NotFound
from ..feedback.evaluation import Interval
from ..feedback.records import Feedback
from ..feedback.rewards.base import Reward
from ..training import versions
from ..training.versions import Index, Round
from .auto_train_inputs import LEAST, PEOPLE
from .auto_train_versions import with_version
from .examples import encode_prompts
from .learning import measured
from .live import unseen
from .people import pixels_of
from .prompt_lists import LIST, RATED, prompts_of
from .sampling import rollout

if TYPE_CHECKING:
    from torch import Tensor

    from ..feedback.store import FeedbackStore


@dataclass(frozen=True)
class Task:
    """What a run works with. reward: who decides, None for people; given: the other inputs."""

    kept: FeedbackStore
    folder: Path
    name: str
    model: Any
    clip: Any
    vae: Any
    clip_vision: Any
    feedback: Feedback
    reward: Reward | None
    given: dict[str, Any]

    @property
    def votes(self) -> int:
        """How many are waited for, or how many pairs the reward compares at least."""
        chosen = self.given["decided_by"]
        return max(chosen["votes"], LEAST) if chosen["decided_by"] == PEOPLE else LEAST

    @property
    def pairs(self) -> int:
        return max(self.given["pairs"], self.votes)


def called(index: Index, number: int) -> str:
    """A version as sentences call it."""
    return f"version {number} ({index.version(number).file})" if number else "the model without a LoRA"


def judge(task: Task) -> str:
    """Goes on with the judgement of the candidate and says how it stands, or how it ended."""
    index = versions.read(task.folder)
    if round_of(index).rival != index.in_use or too_few_left(task, round_of(index)):
        close(task.kept, round_of(index).trial)
        index = versions.change(task.folder, versions.again)
    if not round_of(index).trial:
        trial, seed = f"auto train {task.name} {uuid.uuid4()}", secrets.randbits(63)
        index = versions.change(task.folder, partial(versions.planned, trial=trial, first_seed=seed))
    return by_reward(task, index) if task.reward is not None else by_people(task, index)


def round_of(index: Index) -> Round:
    assert index.round is not None  # tells types, guards nothing # nosec B101
    return index.round


def too_few_left(task: Task, now: Round) -> bool:
    """Whether pictures were deleted, or more votes are wanted, so that one rater could never give them all."""
    tally = tally_of(task.kept, now.trial)
    return task.reward is None and tally is not None and tally.pairs < task.votes > tally.votes


def tally_of(kept: FeedbackStore, trial: str) -> Tally | None:
    """How a trial stands, None where nobody is asked yet."""
    with suppress(NotFound):
        return kept.ask(lambda c: blind.tally(c, trial))
    return None


def close(kept: FeedbackStore, trial: str) -> None:
    """Nobody is asked about it any more; one that never began is none."""
    with suppress(NotFound):
        kept.note(lambda c: blind.close(c, trial))


# People


def by_people(task: Task, index: Index) -> str:
    trial = round_of(index).trial
    if (tally := tally_of(task.kept, trial)) is None:
        if (alike := put(task, index)) is not None:
            return ended(task, index, False, alike)
        tally = tally_of(task.kept, trial)
    assert tally is not None  # tells types, guards nothing # nosec B101
    better = versions.better(tally.win_rate, tally.votes, task.votes)
    if better is None:
        return waits(task, index, tally)
    return ended(task, index, better, of_votes(tally))


def put(task: Task, index: Index) -> str | None:
    """Draws the pairs and puts them before people; where too few of them differ, says so instead."""
    rows, seeds, rival, candidate = drawn(task, index)
    a, b = pixels_of(rival), pixels_of(candidate)
    pairs = [BlindPair(*row) for row in zip(rows, a, b, seeds, strict=True) if not np.array_equal(row[1], row[2])]
    if len(pairs) < task.votes:
        return f"it draws the same pictures as before in {len(rows) - len(pairs)} of {len(rows)} pairs"
    blind.put(task.kept, round_of(index).trial, task.given["decided_by"]["collection"].strip(), pairs)
    return None


def waits(task: Task, index: Index, tally: Tally) -> str:
    """Before the last vote nothing is said of how they went, so that nobody follows the others."""
    return (
        f"{called(index, round_of(index).candidate)} is compared with {called(index, round_of(index).rival)}: "
        f"{tally.votes} of {task.votes} votes so far. Compare pairs in the sidebar under Compare, in the collection "
        f"'{task.given['decided_by']['collection'].strip()}', then run this node again."
    )


def of_votes(tally: Tally) -> str:
    who = "one person" if tally.raters == 1 else f"{tally.raters} people"
    return f"it got {in_words(tally.win_rate)} of {tally.votes} votes by {who}"


def in_words(share: Interval) -> str:
    return f"{share.value:.0%} (95 % interval {share.low:.0%} to {share.high:.0%})"


# A reward


def by_reward(task: Task, index: Index) -> str:
    rows, _, rival, candidate = drawn(task, index)
    assert task.reward is not None  # tells types, guards nothing # nosec B101
    before, now = (measured(task.reward, images, rows) for images in (rival, candidate))
    share = evaluation.paired_win_rate(before, now, rows if len(set(rows)) >= evaluation.FEW_PROMPTS else None)
    why = f"it got {in_words(share)} of {len(rows)} pairs by the reward {task.reward.name}"
    return ended(task, index, bool(versions.better(share, len(rows), task.votes)), why)


# Both


def drawn(task: Task, index: Index) -> tuple[list[str], list[int], Tensor, Tensor]:
    """(prompt and seed of each pair, pictures of what is in use, pictures of the candidate), (N, 3, H, W) each."""
    now, given, prompts = round_of(index), task.given, prompts_to_draw(task)
    rows = [prompts[i % len(prompts)] for i in range(task.pairs)]
    seeds = [(now.first_seed + i) % 2**64 for i in range(len(rows))]
    conds = encode_prompts(task.clip, rows)
    how = (given["sampling_steps"], given["cfg"], given["sampler_name"], given["scheduler"])
    size = (given["width"], given["height"])
    with unseen():
        rival, candidate = (
            rollout(model, [conds[row] for row in rows], conds[""], task.vae, seeds, *how, *size).images
            for model in models(task, index)
        )
    return rows, seeds, rival, candidate


def prompts_to_draw(task: Task) -> list[str]:
    """What is written in the node, or the prompts of the rated pictures. Raises NoPromptsError."""
    if task.given["prompts"].strip():
        return prompts_of({"prompts": LIST, "text": task.given["prompts"]})
    return prompts_of({"prompts": RATED, "feedback": task.feedback})


def models(task: Task, index: Index) -> list[Any]:
    """The model with what is in use, and with the candidate."""
    numbers = (round_of(index).rival, round_of(index).candidate)
    return [with_version(task.model, index.version(number) if number else None) for number in numbers]


def ended(task: Task, index: Index, better: bool, why: str) -> str:
    """The trial is closed first: whoever comes back after a crash in between decides the same by the same votes."""
    now = round_of(index)
    close(task.kept, now.trial)
    made = partial(versions.promoted if better else versions.not_promoted, why=why)
    after = versions.change(task.folder, lambda index: made(index) if index.in_use == now.rival else index)
    candidate, rival = called(index, now.candidate), called(index, now.rival)
    if after.round is not None:
        return f"Another version was taken into use meanwhile. Run this node again to compare {candidate} with it."
    if better:
        return f"{candidate} is in use now, in place of {rival}: {why}."
    return f"{candidate} is not promoted, {rival} stays in use: {why}."
