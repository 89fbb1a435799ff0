"""FeedbackTrainLora: ratings, likes and comparisons of pictures become a LoRA."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy.samplers import KSAMPLER
from torch import Tensor

from ..feedback.records import Feedback
from ..feedback.rewards.base import Reward
from ..feedback.rewards.identity import identity
from ..training import lora_files
from ..training.following import Checks, History, fingerprint
from ..training.loop import Plan, Step
from ..training.low_rank import Part
from ..training.objectives import Objective
from ..training.online import Epoch
from ..training.pictures import Pictures, examples
from ..training.sources import Example, ForwardSource, Group
from ..training.validation import FEWEST, Validation, split
from . import cautions
from .compat import FEEDBACK, io, store, ui
from .decoder import check_vae
from .examples import encode_pictures, encode_prompts, rated_pictures, scored_pictures
from .existing_lora import NONE, existing_lora
from .gradient_check import check_gradients
from .live import Live, Samples
from .memory import check_room, need_of
from .policy import trainable
from .sampling import Conditioning, check_prompts, rollout
from .training_inputs import (
    CHECKS,
    CURVES,
    MORE,
    NO_CHECKS,
    SAMPLES,
    adapter_inputs,
    checks_input,
    goal_of,
    length_inputs,
    lora_inputs,
    objective_input,
    pictures_input,
    rate_of,
    sampling_of,
    setup_of,
    show_input,
)
from .training_run import Training, checked_name, summary, with_lora

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

SHOWN = 4
"""Samples of the LoRA so far, of the first prompts in turn."""

NOT_TOLD = ("show", "resume", "accumulation", "hours")
"""Inputs that the result does not depend on: a run goes on whatever they are."""


class FeedbackTrainLora(io.ComfyNode):
    """Trains a LoRA on what people said about pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackTrainLora",
            display_name="Train LoRA from feedback",
            category="feedback/training",
            search_aliases=["fine-tune", "RLHF", "reward-weighted", "DPO", "KTO", "NFT", "lora training"],
            description=(
                "Trains a LoRA that makes the model's pictures more like those you rated high. It is saved in "
                "models/loras and loads with any LoRA loader. Cancelling keeps what was learned so far."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that made the rated pictures; it stays as it is."),
                FEEDBACK.Input("feedback", tooltip="Which ratings to learn from: connect Collect feedback."),
                io.Clip.Input("clip", tooltip="The model's text encoder; each prompt is encoded once."),
                io.Vae.Input("vae", tooltip="The model's VAE; each picture is encoded once."),
                objective_input(),
                pictures_input(),
                *length_inputs(),
                *lora_inputs("feedback"),
                checks_input(),
                show_input(),
                *adapter_inputs(),
            ],
            outputs=[
                io.Custom("LORA_MODEL").Output("lora", tooltip="The LoRA, for core's LoRA model loader and Save LoRA."),
                io.Custom("LOSS_MAP").Output("loss", tooltip="The loss of every step, for core's Plot Loss Graph."),
                io.Model.Output("trained_model", display_name="model", tooltip="The model with the LoRA."),
            ],
        )

    @classmethod
    def execute(cls, model, feedback, clip, vae, objective, pictures, name, seed, **numbers) -> io.NodeOutput:
        fitted = fit_lora(model, feedback, clip, vae, objective, pictures, name, seed, numbers)
        tensors, losses = lora_files.to_tensors(fitted.layers), {"loss": fitted.training.history.losses}
        told = ui.PreviewImage(fitted.picture, cls=cls).as_dict() | {"text": (fitted.report,)}
        return io.NodeOutput(tensors, losses, with_lora(model, tensors), ui=told | {"lora": (fitted.path.name,)})


@dataclass(frozen=True)
class Fitted:
    """A finished LoRA: its layers, its file, what happened in words, and curves with samples, IMAGE (1, H, W, 3)."""

    training: Training
    layers: Mapping[str, Part]
    path: Path
    report: str
    picture: Tensor


def fit_lora(
    model: ModelPatcher, feedback: Feedback, clip: Any, vae: Any, objective: dict[str, Any], pictures: dict[str, Any],
    name: str, seed: int, numbers: dict[str, Any], begun: Callable[[str], object] = lambda name: None,
) -> Fitted:  # fmt: skip
    """What the node does, with its inputs. begun: is told the LoRA's name before the first step."""
    check_vae(vae, model)
    goal, about = goal_of(objective)
    checked_name(name)
    numbers = numbers | {"learning_rate": rate_of(objective["objective"], numbers["learning_rate"])}
    rated = rated_pictures(store(), feedback, partial(check_room, model))
    conds = encode_prompts(clip, rated.prompts)
    check_prompts(model, conds.values())
    latents = encode_pictures(model, vae, rated.images)
    settings = about | plain(numbers) | {"seed": seed, "pictures": plain(pictures), "data": digest([rated])}
    rated = rated.without_images()
    told: list[str] = []
    known = existing_lora(model, numbers.get("existing_lora", NONE), numbers["rank"], told.append)
    with trainable(model, numbers["rank"], seed, replace(setup_of(numbers), existing=known)) as policy:
        training = Training.begin(policy, name, settings, numbers.get("ema", 0.99), numbers.get("resume", True))
        begun(training.name)
        rate = cautions.of_fast_pairs(objective["objective"], numbers["learning_rate"])
        for line in [*told, *rate, *cautions_of(objective, pictures)]:
            training.tell(line)
        more = made_for(training, vae, conds, rated, pictures, seed) if pictures["pictures"] == MORE else []
        learned = examples([rated, *(m for m, _ in more)], [*latents, *(x for _, xs in more for x in xs)], goal)
        shown = samples(training, vae, rated, conds, numbers)
        live = Live(f"Loss of {training.name}", numbers["steps"], *shown)
        result = learn(training, goal, learned, conds, numbers, live)
        live.sample(training.steps())
    path = training.save(result, training.name)
    training.note(feedback, path)
    text = summary(training, path, f"{len(learned)} {'pairs' if goal.pictures == 2 else 'pictures'}")
    return Fitted(training, result, path, text, live.picture(training.history))


def made_for(
    training: Training, vae: Any, conds: dict[str, Conditioning], like: Pictures, pictures: dict[str, Any], seed: int
) -> list[tuple[Pictures, list[Tensor]]]:
    """More pictures of the same prompts, as scores and latents: made once in a run, and kept in its folder.

    They follow from the run's settings, so nothing of them is part of what makes it the same run: on a GPU no picture
    comes out bit for bit the same again.
    """
    path, mark = training.follower.run.folder / "made.safetensors", fingerprint(training.settings)
    kept = Epoch.load(path) if path.exists() else None
    if kept is None or kept.mark != mark:
        model, how = training.policy.model, sampling_of(pictures, seed)
        with torch.no_grad():
            made = scored_pictures(model, vae, conds, like, pictures["reward"], pictures["count"], how)
            latents = torch.stack(encode_pictures(model, vae, made.images))
        kept = Epoch(0, made.prompts, made.scores, {"latents": latents}, mark=mark)
        kept.check()
        kept.save(path)
    device = training.policy.device
    return [(Pictures([], kept.prompts, kept.rewards), [x.to(device) for x in kept.tensors["latents"]])]


def cautions_of(objective: dict[str, Any], pictures: dict[str, Any]) -> list[str]:
    """What to be told first where more pictures are made: of their reward, and of a model that draws in few steps."""
    if pictures["pictures"] != MORE:
        return []
    few = cautions.of_few_steps(objective["objective"], pictures["cfg"], pictures["sampling_steps"])
    return [*cautions.of_rewards([pictures["reward"]]), *few]


def digest(sources: Sequence[Pictures]) -> str:
    """Of all that was said about which pictures: a run goes on only with the same."""
    told = [(list(s.prompts), [float(x) for x in s.scores], [vars(p) for p in s.preferences]) for s in sources]
    pixels = [float(image.double().sum()) for source in sources for image in source.images]
    return hashlib.sha256(repr((told, pixels)).encode()).hexdigest()


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that the result depends on, as JSON: of a reward or a sampler what tells it from others, and nothing
    that it does not depend on."""
    kept = {key: value for key, value in settings.items() if key not in NOT_TOLD}
    return {key: _plain(value) for key, value in kept.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return plain(value)
    if isinstance(value, Tensor):
        return value.tolist()
    if value is None or isinstance(value, (str, int, float, bool, list)):
        return value
    if isinstance(value, Reward):
        return identity(value)
    if isinstance(value, KSAMPLER):
        made = value.sampler_function
        options = {"options": value.extra_options, "inpaint": value.inpaint_options}
        return {"sampler": getattr(made, "__name__", type(made).__name__), **plain(options)}
    return str(value) if isinstance(value, Feedback) else getattr(value, "name", type(value).__name__)


def learn(
    training: Training,
    goal: Objective,
    learned: Sequence[Example | Group],
    conds: dict[str, Conditioning],
    numbers: dict[str, Any],
    show: Callable[[Step, History], None],
) -> Any:
    """The run itself. Raises NotEnoughMemoryError, WrongConnectionError before it begins, where it could not."""
    policy, seed = training.policy, training.settings["seed"]
    held_out: dict[str, Any] = numbers.get("held_out") or {"held_out": NO_CHECKS}
    kept, held = split(learned, held_out.get("share", 0.0), seed)
    source = ForwardSource(kept, conds, policy.process, policy.sigma_at, numbers["batch"], seed)
    check_gradients(policy, source.batch_at(0))
    need = need_of(policy, goal, source.batch_at(source.largest_step()))
    training.tell(f"Training {need.text()}.")
    parts = need.parts(numbers["batch"])
    training.progress.parts = max(training.progress.parts, parts, numbers.get("accumulation", 1))
    checks = None
    if held_out["held_out"] == CHECKS and not held:
        training.tell(f"Nothing is held out: that takes {FEWEST} pictures or pairs, and there are {len(learned)}.")
    if held_out["held_out"] == CHECKS and held:
        loss = Validation(policy, goal, source, held, training.progress.average)
        checks = Checks(loss, held_out["every"], held_out["patience"])
    return training.follow(source, goal, Plan(numbers["steps"], numbers["learning_rate"]), show, checks)


def samples(
    training: Training, vae: Any, like: Pictures, conds: dict[str, Conditioning], numbers: dict[str, Any]
) -> tuple[Samples | None, int]:
    """What makes the samples to be shown, and every how many steps; nothing where curves are enough."""
    show: dict[str, Any] = numbers.get("show") or {"show": CURVES}
    if show["show"] != SAMPLES:
        return None, 0
    how = sampling_of(show, 0)
    prompts = [list(dict.fromkeys(like.prompts))[i % len(set(like.prompts))] for i in range(SHOWN)]

    def make() -> tuple[Tensor, list[str]]:
        positives = [conds[prompt] for prompt in prompts]
        with training.shown():
            made = rollout(
                training.policy.on_model(), positives, conds[""], vae, list(range(SHOWN)), how.steps, how.cfg,
                how.sampler_name, how.scheduler, *like.size(),
            )  # fmt: skip
        return made.images.movedim(1, -1), prompts

    return make, show["every"]


NODES = [FeedbackTrainLora]
