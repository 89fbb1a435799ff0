"""One run of training/distributed.py: encode once, train together, write the LoRA."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..feedback.formats.bundle import BadData
from ..feedback.media import BadPicture
from ..feedback.rewards.base import Reward
from ..feedback.rewards.identity import identity
from . import exported, lora_files, stopping
from .adapters import MovingAverage
from .distributed_options import OptionError, objective_of, prompts_in, reward_of
from .exported import Exported
from .following import Follower, History, fingerprint
from .loop import Plan, Source, Step
from .objectives import Objective
from .pictures import examples
from .pipeline import Pipeline, checked, load
from .pipeline_policy import PipelinePolicy, Told, mark_of
from .pipeline_rollouts import Drawing, Online
from .progress import Progress
from .runs import about
from .sources import ForwardSource
from .team import SharedRun, Team

DROPOUT = 0.1
"""The share of captions that is dropped, so that CFG goes on working."""


class RunError(ValueError):
    """A run that can't go on as asked; the message says what to do."""


@dataclass
class Together:
    """What the parts of a run need: the options, the team, the pipeline."""

    given: argparse.Namespace
    team: Team
    pipeline: Pipeline

    def say(self, text: str) -> None:
        if self.team.first:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def run(given: argparse.Namespace) -> None:
    """Trains as the options say and writes `given.out`. Raises errors that are sentences; see distributed.ERRORS."""
    objective, told = objective_of(given)
    checked(given.pipeline)
    reward = None if given.reward is None else reward_of(given.reward, given.encoder)
    stopping.install()
    with ExitStack() as opened:
        feedback = None
        if given.feedback:
            feedback = opened.enter_context(exported.reading(given.feedback, given.axis, given.raters))
        team = Team(given.cpu)
        with torch.random.fork_rng(devices=[]):
            here = Together(given, team, load(given.pipeline, _dtype(given)))
            _train(here, objective, told, feedback, reward)


def _dtype(given: argparse.Namespace) -> torch.dtype:
    return torch.bfloat16 if given.precision == "bf16" else torch.float32


def _train(
    here: Together, objective: Objective, told: dict[str, Any], feedback: Exported | None, reward: Reward | None
) -> None:  # fmt: skip
    given, team, pipeline = here.given, here.team, here.pipeline
    pipeline.to(team.device)
    base, latents = mark_of(pipeline.network), []
    if feedback is not None and reward is None:
        latents, feedback = encoded_pictures(here, feedback)
    prompts = prompts_in(given.prompts) if given.prompts else list(feedback.prompts if feedback else ())
    conds = encoded_prompts(here, prompts)
    pipeline.forget_encoders(vae=reward is None)
    settings = settings_of(given, told, pipeline, base, feedback, prompts, reward)
    if given.gradient_checkpointing:
        pipeline.network.enable_gradient_checkpointing()
    policy = PipelinePolicy(pipeline, given.rank, given.seed, given.layers, given.precision == "bf16")
    follower = follower_of(here, policy, settings)
    if reward is not None:
        reward.to(team.device)
        how = drawing_of(here, list(dict.fromkeys(prompts)))
        online = Online(team, policy, conds, how, reward, given.batch, given.seed, follower, here.say)
        source: Source = online.source(objective, given.updates)
    else:
        source = rated_source(here, policy, feedback, latents, conds, objective)
    follower.follow(policy, source, objective, Plan(given.steps, given.learning_rate))
    save(here, policy, follower, settings)


def rated_source(
    here: Together, policy: PipelinePolicy, feedback: Exported | None, latents: Sequence[Tensor],
    conds: Mapping[str, Told], objective: Objective,
) -> ForwardSource:  # fmt: skip
    """What was rated or compared, as the objective wants it. Raises NoPreferenceError."""
    given, team = here.given, here.team
    assert feedback is not None  # the options were checked # nosec B101
    learned = examples([feedback.judged()], [latent.to(team.device) for latent in latents], objective)
    here.say(f"{len(learned)} {'pairs' if objective.pictures == 2 else 'pictures'}, {team.size} processes")
    return ForwardSource(learned, conds, policy.process, policy.sigma_at, given.batch, given.seed, DROPOUT)


def encoded_pictures(here: Together, feedback: Exported) -> tuple[list[Tensor], Exported]:
    """The latents of all pictures that can be read, each encoded by one process alone; and the feedback on these."""
    pipeline = here.pipeline

    def latent(index: int) -> dict[str, Tensor] | None:
        try:
            image = feedback.pixels(index, pipeline.multiple)
        except (BadPicture, BadData):
            return None
        return {"latent": pipeline.encode_picture(image)} if image.numel() else None

    made = here.team.shared(len(feedback.pictures), ("latent",), latent)
    kept = [index for index, one in enumerate(made) if one is not None]
    left = [
        *feedback.left,
        *([f"{len(made) - len(kept)} pictures that can't be read"] if len(kept) < len(made) else []),
    ]
    here.say(f"{len(kept)} pictures are encoded" + "".join(f"; left out: {what}" for what in left))
    return [one["latent"] for one in made if one is not None], feedback.only(kept)


def encoded_prompts(here: Together, prompts: Sequence[str]) -> dict[str, Told]:
    """What the network is told of each distinct prompt, and of none, each encoded by one process alone."""
    distinct = list(dict.fromkeys((*prompts, "")))
    names = here.pipeline.family.told
    made = here.team.shared(len(distinct), names, lambda index: here.pipeline.encode_text(distinct[index]))
    here.say(f"{len(distinct)} prompts are encoded")
    return {prompt: one for prompt, one in zip(distinct, made, strict=True) if one is not None}


def settings_of(
    given: argparse.Namespace, told: Mapping[str, Any], pipeline: Pipeline, base: str, feedback: Exported | None,
    prompts: Sequence[str], reward: Reward | None,
) -> dict[str, Any]:  # fmt: skip
    """All that the result depends on; how many processes there are is not among it."""
    names = ["steps", "batch", "rank", "layers", "learning_rate", "seed", "ema", "precision"]
    found = {name: getattr(given, name) for name in names} | dict(told)
    found |= {
        "pipeline": pipeline.name,
        "model": base,
        "dropout": DROPOUT,
        "data": feedback.digest() if feedback else "",
    }
    if reward is not None:
        names = ["updates", "prompts_per_epoch", "group_size", "sampling_steps", "cfg", "width", "height"]
        found |= {name: getattr(given, name) for name in names} | {"reward": identity(reward), "prompts": list(prompts)}
    return found


def follower_of(here: Together, policy: PipelinePolicy, settings: Mapping[str, Any]) -> Follower:
    """A run from its start, or from where it was. Raises RunError where --resume finds nothing to go on from."""
    given, team = here.given, here.team
    folder = given.resume or given.out.with_suffix(".run")
    run = SharedRun(folder, every_steps=given.every, writes=team.first)
    latest = run.latest()
    if latest is None and given.resume:
        raise RunError(f"--resume: there is no whole checkpoint in {folder}.")
    if latest is not None and about(latest).get("fingerprint") != fingerprint(settings):
        raise RunError(
            f"The run in {folder} had other settings, feedback or another model: repeat its command to go on with it, "
            "or give another --out for a new one."
        )
    progress = Progress(policy.parameters(), MovingAverage(policy.parameters(), given.ema), policy.adapters)
    follower = Follower(run, progress, settings, show=_show(here))
    follower.compute, follower.agreed = team.gradients, team.agreed
    if follower.resume():
        here.say(f"goes on from step {progress.step}")
    reached = torch.tensor(progress.step)
    if int(team.sum(reached)) != team.size * progress.step:
        raise RunError(f"The processes do not see the same checkpoints: put {folder} where every machine reads it.")
    progress.parts = max(progress.parts, given.accumulation)
    return follower


def _show(here: Together) -> Callable[[Step, History], None]:
    every = max(1, here.given.steps // 20)

    def show(step: Step, history: History) -> None:
        if step.done % every == 0 or step.done == here.given.steps:
            recent = history.losses[-every:]
            here.say(f"step {step.done} of {here.given.steps}: loss {sum(recent) / len(recent):.5g}")

    return show


def drawing_of(here: Together, prompts: Sequence[str]) -> Drawing:
    """Raises OptionError for a size that the pipeline can't draw."""
    given, multiple = here.given, here.pipeline.multiple
    if given.width % multiple or given.height % multiple:
        raise OptionError(f"--width and --height have to be multiples of {multiple} for this pipeline.")
    return Drawing(
        prompts, given.prompts_per_epoch, given.group_size, given.sampling_steps, given.cfg, given.width, given.height
    )


def save(here: Together, policy: PipelinePolicy, follower: Follower, settings: Mapping[str, Any]) -> Path:
    """Writes the moving average as a LoRA file, by the first process."""
    out: Path = here.given.out
    layers = policy.adapters.low_rank(follower.best_average())
    names = policy.names(layers)
    if here.team.first:
        told = lora_files.metadata(out.stem, here.pipeline.family.architecture, layers, settings)
        lora_files.save(out, layers, told, set(names.values()), names)
    here.team.wait()
    here.say(f"{out}: {len(follower.history.losses)} steps, {len(layers)} layers")
    return out
