"""FeedbackReinforceLora: the model draws, a reward or people score it, and a LoRA learns from that, again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..training import lora_files
from ..training.loop import Plan
from ..training.objectives import Batch, Nft, Objective
from ..training.online import OnlineSource
from ..training.policy_gradient import Awm, Draft, Ppo
from . import cautions
from .compat import io, store, ui
from .decoder import check_vae
from .denoiser import releasing
from .examples import encode_prompts
from .existing_lora import NONE, existing_lora
from .gate import workflow_of
from .gradient_check import check_gradients
from .learning import prepared
from .live import Live
from .memory import need_of
from .people import People
from .people_at_gate import PeopleAtGate
from .policy import Policy, trainable
from .prompt_lists import prompts_input, prompts_of
from .reinforce_inputs import AT_GATE, PEOPLE, inputs
from .reinforce_run import Online, Scorer, by_reward, differentiable_score
from .reinforce_watch import fits_of, held_out, watch_of, watched_by, watching
from .rollouts import how_to_sample
from .sampling import check_prompts
from .training import plain
from .training_inputs import setup_of
from .training_run import Training, checked_name, summary, with_lora


class FeedbackReinforceLora(io.ComfyNode):
    """Trains a LoRA on the model's own pictures, by their scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackReinforceLora",
            display_name="Reinforce LoRA",
            category="feedback/training",
            search_aliases=["reinforcement learning", "RL", "DDPO", "GRPO", "NFT", "DRaFT", "RLHF online"],
            description=(
                "The model draws, a reward or people score what it drew, and a LoRA learns from the scores; then again "
                "with what it has become. Stops by itself when the reward is being hacked."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to start from; it stays as it is."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                prompts_input(),
                *inputs(),
            ],
            outputs=[
                io.Custom("LORA_MODEL").Output("lora", tooltip="The LoRA, for core's LoRA model loader and Save LoRA."),
                io.Custom("LOSS_MAP").Output("loss", tooltip="The loss of every step, for core's Plot Loss Graph."),
                io.Model.Output("trained_model", display_name="model", tooltip="The model with the LoRA."),
                io.String.Output("report", tooltip="What happened, in words: how the scores went, and any alarm."),
            ],
            hidden=[io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, prompts, scored_by, objective, name, seed, reward=None, **given
    ) -> io.NodeOutput:
        check_vae(vae, model)
        scored_by = {"reward": reward} | scored_by
        texts = prompts_of(prompts)
        watch = watch_of(given)
        held = held_out(watch)
        conds = encode_prompts(clip, [*texts, *(held.prompts if held else ())])
        check_prompts(model, conds.values())
        checked_name(name)
        notes: list[str] = []
        known = existing_lora(model, given.get("existing_lora", NONE), given["rank"], notes.append)
        rewards = [scored_by.get("reward"), *watch.rewards]
        notes += cautions.of_rewards(rewards)
        about = {"seed": seed, "workflow_id": workflow_of(cls.hidden)[1] if cls.hidden else None}
        told = plain(given | {"prompts": texts, "seed": seed, **scored_by, **objective} | watching(given, held))
        setup = replace(setup_of(given), existing=known)
        with releasing(rewards), trainable(model, given["rank"], seed, setup) as policy:
            training = Training.begin(policy, name, told, given.get("ema", 0.99), given.get("resume", True))
            online = online_of(training, vae, conds, texts, scored_by, objective, given | about)
            online.watched, online.stop_at_alarm = watched_by(watch), watch.stops
            online.fits, held = fits_of(policy, vae, conds, held, seed), None
            steps = len(online.how.sigmas) - 1
            for line in [*notes, *cautions.of_few_steps(objective["objective"], online.how.cfg, steps)]:
                training.tell(line)
            live = Live(f"Reward of {training.name}", given["epochs"] * given["updates"])
            result = reinforce(online, goal_of(objective, policy, vae, scored_by), given, live)
        path = training.save(result, training.name)
        training.note(None, path)
        tensors, losses = lora_files.to_tensors(result), {"loss": training.history.losses}
        report = "\n".join([summary(training, path, f"{len(texts)} prompts"), *scores_in_words(training)])
        told = ui.PreviewImage(live.picture(training.history), cls=cls).as_dict() | {"text": (report,)}
        output = (tensors, losses, with_lora(model, tensors), report)
        return io.NodeOutput(*output, ui=told | {"lora": (path.name,)})


def goal_of(chosen: dict[str, Any], policy: Policy, vae: Any, scored_by: dict[str, Any]) -> Objective:
    """The objective that the DynamicCombo's value names. Raises WrongConnectionError where it needs another reward."""
    kind = chosen["objective"]
    if kind == "NFT":
        return Nft(chosen["beta"], chosen["kl"], limit=5.0, old="old")
    if kind == "AWM":
        return Awm(chosen["clip"], chosen["kl_old"], chosen["kl"])
    if kind == "PPO":
        return Ppo(chosen["clip"], chosen["kl"])
    return Draft(differentiable_score(policy, vae, prepared(scored_by.get("reward"))), chosen["kl"])


def online_of(
    training: Training, vae: Any, conds: Any, prompts: Sequence[str], scored_by: dict[str, Any],
    objective: dict[str, Any], given: dict[str, Any],
) -> Online:  # fmt: skip
    policy = training.policy
    how = how_to_sample(
        policy.model, given["cfg"], given["sampling_steps"], given["sampler_name"], given["scheduler"],
        (given["width"], given["height"]), given.get("sampler"), given.get("sigmas"),
    )  # fmt: skip
    score = scorer(training, scored_by, given["group_size"], given.get("workflow_id"))
    return Online(
        training, vae, conds, prompts, how, score, given["prompts_per_epoch"],
        given["group_size"], given["batch"], given["seed"], given.get("win_rate", False), objective.get("eta", 1.0),
        objective.get("window", 2), given.get("patience", 0),
    )  # fmt: skip


def scorer(training: Training, scored_by: dict[str, Any], group: int, workflow_id: str | None = None) -> Scorer:
    """group: pictures of a prompt. Raises InvalidRecord for more than people can put in order."""
    who, folder = scored_by["scored_by"], training.follower.run.folder / "rollouts"
    if who == PEOPLE:
        return People(store, scored_by["collection"], folder, scored_by["hours"])
    if who == AT_GATE:
        where, hours, mode = (scored_by[name] for name in ("collection", "hours", "mode"))
        return PeopleAtGate(store, where, folder, hours, mode, group, workflow_id)
    return partial(by_reward, prepared(scored_by["reward"]))


class Tried:
    """A source whose first batch to learn from is tried before it is trained on: an epoch may have none."""

    def __init__(self, source: OnlineSource, try_: Callable[[Batch], None]) -> None:
        self.source, self.try_ = source, try_
        self._done = False

    def batch_at(self, step: int) -> Batch | None:
        batch = self.source.batch_at(step)
        if batch is not None and not self._done:
            self.try_(batch)
            self._done = True
        return batch


def reinforce(online: Online, goal: Objective, given: dict[str, Any], live: Live) -> Any:
    """Raises NotEnoughMemoryError, WrongConnectionError before the first step, where it could not be."""
    training, steps = online.training, given["epochs"] * given["updates"]

    def try_(batch: Batch) -> None:
        check_gradients(online.policy, batch)
        losses = len(batch) // goal.pictures
        need = need_of(online.policy, goal, batch)
        training.tell(f"Training {need.text()}.")
        parts = max(need.parts(losses), given.get("accumulation", 1))
        training.progress.parts = max(training.progress.parts, parts)

    source = Tried(online.source(goal, given["updates"]), try_)
    return training.follow(source, goal, Plan(steps, given["learning_rate"]), live)


def scores_in_words(training: Training) -> list[str]:
    """How each score went from the first to the last epoch."""
    epochs = training.history.epochs
    names = [name for name in (epochs[0] if epochs else {}) if name not in ("number", "step", "why")]
    return [
        f"{name}: {epochs[0][name][0]:.4g} in the first epoch, {epochs[-1][name][0]:.4g} in the last "
        f"(standard error {epochs[-1][name][1]:.2g})"
        for name in names
    ]


NODES = [FeedbackReinforceLora]
