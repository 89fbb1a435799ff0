"""One look of the node that trains by itself: goes on with the round that is under way, or begins one if it is time."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..feedback import blind
from ..feedback.records import Feedback
from ..training import runs, versions
from ..training.judgements import TooFewJudgementsError
from ..training.versions import Index, Round, Version
from .auto_train_inputs import IN_USE, MODEL
from .auto_train_judging import Task, called, judge, of_votes, round_of, tally_of
from .auto_train_versions import from_json, to_json
from .existing_lora import NONE
from .learning import learn_taste
from .training import fit_lora, plain
from .training_run import lora_folder

if TYPE_CHECKING:
    from torch import Tensor

    from ..feedback.store import FeedbackStore

RECIPE = (
    "steps", "learning_rate", "batch", "rank", "layers", "held_out", "adapter", "layer_patterns", "precision",
    "gradient_checkpointing", "ema",
)  # fmt: skip
CAUTION = 1.0


@dataclass
class Told:
    """What happened, in words, and the curves of the training if there was one."""

    lines: list[str]
    picture: Tensor | None = None


def run(task: Task) -> Told:
    """Judges what is to be judged, trains what is to be trained, and judges that."""
    with versions.working(task.folder) as mine:
        if not mine:
            return Told([f"Another run is at work on '{task.name}'. Nothing was done here; run this node again later."])
        told = Told([])
        if judging(task):
            told.lines.append(judge(task))
        if versions.read(task.folder).round is None:
            told.lines += begin(task)
        if (now := versions.read(task.folder).round) is not None and now.stage == "training":
            train(task, told)
            told.lines.append(judge(task))
        return told


def judging(task: Task) -> bool:
    now = versions.read(task.folder).round
    return now is not None and now.stage == "judging"


def begin(task: Task) -> list[str]:
    """Begins a round if enough is new and the taste beats chance; says why, or why not."""
    due, lines = is_due(task, versions.read(task.folder))
    if due:
        versions.change(task.folder, partial(versions.begun, now=Round(to_json(task.feedback), recipe(task))))
    return lines


def is_due(task: Task, index: Index, keep: bool = True) -> tuple[bool, list[str]]:
    """Whether to train now, and why. keep: see `learn_taste`."""
    new, wanted = new_judgements(task.kept, task.feedback, index.seen), task.given["new_ratings"]
    if new < wanted:
        return False, [f"{new} of {wanted} new ratings have come: nothing to train yet."]
    lines = [f"{new} new ratings have come."]
    try:
        _, report, words = learn_taste(task.kept, task.feedback, task.clip_vision, CAUTION, keep=keep)
    except TooFewJudgementsError as error:
        return False, [*lines, f"Nothing is trained yet: {error}"]
    if report.beats_chance:
        return True, [*lines, words]
    return False, [*lines, "Nothing is trained yet, because the taste that they teach does not beat chance.", words]


def new_judgements(kept: FeedbackStore, feedback: Feedback, since: int) -> int:
    """How many judgements that the query asks for came after a revision; votes on candidates are no ratings."""
    now, before = judgements(kept, feedback), judgements(kept, replace(feedback, revision=since)) if since else set()
    return len(now - before)


def judgements(kept: FeedbackStore, feedback: Feedback) -> set[str]:
    """Ids; the pairs out of one ranking have its own."""
    rated = {one.rating_id for one in kept.rated(feedback)}
    compared = kept.compared(feedback)
    asked = kept.ask(blind.pictures)
    return rated | {c.comparison_id.split(":")[0] for c in compared if not {c.left, c.right} <= asked}


# Training


def recipe(task: Task) -> dict[str, Any]:
    """All that the LoRA depends on beside the ratings, as JSON."""
    index, given = versions.read(task.folder), task.given
    told = {name: given[name] for name in (*RECIPE, "objective", "pictures", "seed") if name in given}
    told |= {"name": task.name, "existing_lora": file_in_use(index) if given["start_from"] == IN_USE else NONE}
    return json.loads(json.dumps(plain(told)))


def file_in_use(index: Index) -> str:
    return index.version(index.in_use).file if index.in_use else NONE


def train(task: Task, told: Told) -> None:
    """Trains the round's LoRA, from where an earlier run was put down, and makes it the candidate."""
    now = round_of(versions.read(task.folder))
    if now.recipe != recipe(task):
        told.lines.append("The recipe was changed since a training was put down, so it begins anew.")
        now = Round(to_json(task.feedback), recipe(task))
        versions.change(task.folder, partial(versions.begun, now=now))
    feedback = from_json(now.feedback)
    path = saved(now)
    if path is None:
        fitted = fit(task, feedback, now)
        path, told.picture = fitted.path, fitted.picture
        told.lines.append(fitted.report)
    count = len(judgements(task.kept, feedback))
    made_at = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def finished(index: Index) -> Index:
        number = len(index.versions) + 1
        version = Version(number, path.name, runs.digest(path), made_at, count, now.recipe)
        return versions.trained(index, version, feedback.revision)

    versions.change(task.folder, finished)


def saved(now: Round) -> Path | None:
    """The round's LoRA, where a run ended after it was saved and before that was written down."""
    path = lora_folder() / f"{now.lora}.safetensors"
    return path if now.lora and path.exists() else None


def fit(task: Task, feedback: Feedback, now: Round) -> Any:
    numbers = {name: task.given[name] for name in (*RECIPE, "accumulation") if name in task.given}
    numbers["existing_lora"] = now.recipe["existing_lora"]

    def begun(lora: str) -> None:
        versions.change(task.folder, partial(versions.named, lora=lora))

    return fit_lora(
        task.model, feedback, task.clip, task.vae, task.given["objective"], task.given["pictures"], task.name,
        task.given["seed"], numbers, begun,
    )  # fmt: skip


# Without doing it


def plan(task: Task) -> list[str]:
    """What `run` would do now. Changes nothing."""
    index = versions.read(task.folder)
    if index.round is None:
        due, lines = is_due(task, index, keep=False)
        return [*lines, would_train(task)] if due else lines
    if index.round.stage == "training":
        changed = index.round.recipe != recipe(task)
        return [f"It would {'train anew, by the changed recipe' if changed else 'go on with the training'}."]
    return [would_judge(task, index)]


def would_train(task: Task) -> str:
    kind, steps = task.given["objective"]["objective"], task.given["steps"]
    base = MODEL if task.given["start_from"] == MODEL else "the LoRA in use"
    return (
        f"It would train by {kind}, {steps} steps from {base}, then draw {task.pairs} pairs and let "
        f"{'people' if task.reward is None else f'the reward {task.reward.name}'} compare them."
    )


def would_judge(task: Task, index: Index) -> str:
    now, tally = round_of(index), tally_of(task.kept, round_of(index).trial)
    name = called(index, now.candidate)
    if task.reward is not None or tally is None or now.rival != index.in_use:
        who = "people" if task.reward is None else f"the reward {task.reward.name}"
        return f"It would draw {task.pairs} pairs of {name} and {called(index, index.in_use)} and let {who} compare."
    better = versions.better(tally.win_rate, tally.votes, task.votes)
    if better is None:
        return f"It would wait on: {tally.votes} of {task.votes} votes about {name} have come."
    return f"It would {'promote' if better else 'not promote'} {name}: {of_votes(tally)}."
