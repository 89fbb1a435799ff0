"""Rules in a running sampler: the post-CFG function that applies them, and the way back to an earlier step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..feedback.rewards.base import Reward
from ..guidance.rules import Course, Rule, earlier
from .decoder import BACKWARD_MEMORY, Decoder, check_pictures, reserving
from .denoiser import WrongConnectionError, patchers_of, release_encoders
from .jacobian import evaluated, keep_outputs, own_estimate, release_outputs
from .pull import RewardGuidance, percent_of
from .run_notes import note
from .scoring import LatentScores, tell

KEY = "feedback_loop_rules"
MOST_ROUNDS = 8
"""How often a run goes back at most, whatever its rules say."""


@dataclass(eq=False)
class Judged:
    """A rule with what it needs of ComfyUI: the reward, the decoder, and the conditioning to switch to."""

    rule: Rule
    reward: Reward
    decoder: Decoder
    conditioning: Any = None
    node: str = ""
    known: Any = None  # the conditioning as this run's model takes it

    def scores(self, denoised: Tensor, percent: float) -> Tensor | None:
        """(B,) on the CPU; None where the reward does not count at this share of the run."""
        reward = self.reward.at(percent)
        return None if reward is None else LatentScores(reward, self.decoder)(denoised)

    def memory_for(self, shape: Sequence[int]) -> float:
        """Bytes that a look at latents of this shape takes; no graph is kept."""
        return self.decoder.memory_for(check_pictures(shape)) / BACKWARD_MEMORY

    def release(self) -> None:
        self.decoder.release()
        release_encoders([self.reward])


@dataclass(eq=False)
class Rules:
    """The post-CFG function of all rule nodes on a model. It stands before reward guidance, which is scaled by it."""

    judged: tuple[Judged, ...]
    course: Course | None = None
    sigmas: Tensor = field(default_factory=lambda: torch.zeros(0))
    kept: dict[int, Tensor] = field(default_factory=dict)  # the estimate of each stopped picture
    returning: dict[int, tuple[int, Tensor]] = field(default_factory=dict)  # from which step on, and what was expected

    def __call__(self, args: dict[str, Any]) -> Tensor:
        denoised, sampling = args["denoised"], args["model"].model_sampling
        if self.course is None or self.course.count != len(denoised):
            return denoised
        comfy.model_management.throw_exception_if_processing_interrupted()
        check_pictures(denoised.shape)
        sigma = float(args["sigma"].max())
        percent = percent_of(sampling, sigma)
        own, switched = denoised, self.course.switched.clone()
        denoised = self._switched(args, own)
        for index, one in enumerate(self.judged):
            self._look(index, one, denoised, percent, sigma)
        if not torch.equal(switched, self.course.switched):
            denoised = self._switched(args, own)
        return self._stopped(denoised)

    def guidance_factor(self, like: Tensor) -> Tensor | None:
        """By how much reward guidance is multiplied, (B, 1, ...); stopped pictures are not guided. None: by 1."""
        if self.course is None or self.course.count != len(like):
            return None
        factor = torch.where(self.course.stopped, torch.zeros(()), self.course.factor)
        return factor.to(like.device).reshape(-1, *(1,) * (like.ndim - 1))

    def _look(self, index: int, one: Judged, denoised: Tensor, percent: float, sigma: float) -> None:
        assert self.course is not None  # tells types, guards nothing # nosec B101
        if not one.rule.start <= percent <= one.rule.end:
            return
        scores = one.scores(denoised, percent)
        if scores is None:
            return
        for place in self.course.look(index, scores, percent):
            if one.rule.action == "stop":
                self.kept[place] = denoised[place].clone()
            if back := self.course.backwards.pop(place, 0):
                step = int((self.sigmas - sigma).abs().argmin())
                self.returning[place] = earlier(step, back), denoised[place].clone()

    def _switched(self, args: dict[str, Any], denoised: Tensor) -> Tensor:
        """The estimate under each picture's prompt. What others' pre- and post-CFG functions made of the first prompt's
        estimate is kept, so that they see every step once."""
        assert self.course is not None  # tells types, guards nothing # nosec B101
        for index in range(len(self.judged)):
            rows = self.course.switched == index
            if rows.any():
                conds = [self.judged[index].known, args["uncond"]]
                other = evaluated(args["model"], conds, args | {"cond": conds[0]}, args["input"])
                denoised = torch.where(_wide(rows, denoised), denoised + (other - own_estimate(args)), denoised)
        return denoised

    def _stopped(self, denoised: Tensor) -> Tensor:
        if not self.kept:
            return denoised
        return torch.stack([self.kept.get(i, denoised[i]) for i in range(len(denoised))])

    # --- a run -------------------------------------------------------------------------------------------------------

    def sample(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """A SAMPLER_SAMPLE wrapper: a run, and runs from an earlier step for the pictures that were sent back.

        Those are noised anew from the estimate at which they were sent back. The whole batch goes the way again, once
        for each step that some went back to, and only theirs are taken from it, so that no picture depends on which
        others share its batch.
        """
        self._warn(guider)
        self.begin(len(noise), sigmas)
        start = torch.zeros_like(noise) if latent_image is None else latent_image
        for one in self.judged:
            one.known = _known(one.conditioning, guider, noise, start, denoise_mask, extra_args)
        rest = (denoise_mask, disable_pbar)
        samples = executor(guider, sigmas, extra_args, callback, noise, latent_image, *rest)
        for round_ in range(MOST_ROUNDS):
            if not self.returning:
                break
            sent, self.returning = self.returning, {}
            for step in sorted({step for step, _ in sent.values()}):
                own = {place: estimate for place, (back_to, estimate) in sent.items() if back_to == step}
                samples = self._again(
                    executor, guider, sigmas[step:], extra_args, callback, start, samples, own, round_, rest
                )
        return samples

    def memory_for(self, shape: Sequence[int]) -> float:
        return max(one.memory_for(shape) for one in self.judged)

    def begin(self, count: int, sigmas: Tensor) -> None:
        self.course = Course(count, [one.rule for one in self.judged])
        self.sigmas, self.kept, self.returning = sigmas.detach().float().cpu(), {}, {}

    def _again(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        start: Tensor,
        samples: Tensor,
        own: dict[int, Tensor],
        round_: int,
        rest: tuple[Tensor | None, bool],
    ) -> Tensor:
        """The samples, with those of `own`, estimates by place in the batch, made anew along these sigmas."""
        if self.course is None:
            return samples
        rows = torch.tensor([place in own for place in range(len(samples))])
        self.course.running = rows.clone()
        estimate = torch.stack([own[i].to(samples) if i in own else samples[i] for i in range(len(samples))])
        if rest[0] is not None:
            estimate = estimate * rest[0] + start * (1 - rest[0])
        seed = int(extra_args.get("seed") or 0) + 1 + round_
        fresh = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed)).to(samples)
        again = executor(guider, sigmas, extra_args, callback, fresh, estimate, *rest)
        return torch.where(_wide(rows, samples), again, samples)

    def _warn(self, guider: Any) -> None:
        hooks = guider.model_options.get("sampler_post_cfg_function", [])
        boosts = any(one.rule.action == "boost guidance" for one in self.judged)
        if boosts and not any(isinstance(hook, RewardGuidance) for hook in hooks):
            logging.warning(
                "A rule boosts guidance, but this model has none, so it changes nothing. Put Reward guidance with a "
                "strength above 0 on the model, or choose another action."
            )

    def end(self, patcher: ModelPatcher | None = None) -> None:
        """After a run: what happened is shown on each rule's node, and kept for those that record its pictures."""
        if self.course is not None:
            for index, one in enumerate(self.judged):
                tell(one.node or None, self.course.told(index))
            note([one.node for one in self.judged], self.course.count, self.course.texts())
        self.course, self.kept, self.returning = None, {}, {}
        for one in self.judged:
            one.known = None
            one.release()
        if patcher is not None:
            release_outputs(patcher)


def _wide(rows: Tensor, like: Tensor) -> Tensor:
    return rows.to(like.device).reshape(-1, *(1,) * (like.ndim - 1))


def _known(
    conditioning: Any, guider: Any, noise: Tensor, latent: Tensor, mask: Tensor | None, extra_args: dict[str, Any]
) -> Any:
    """A CONDITIONING as the running model takes it."""
    if conditioning is None:
        return None
    conds = comfy.sampler_helpers.convert_cond(conditioning)
    if any("control" in cond for cond in conds):
        raise WrongConnectionError(
            "The conditioning to switch to holds a ControlNet, which would have to be loaded in the middle of a run. "
            "Connect one without, or put the ControlNet on the prompt of the sampler."
        )
    made = comfy.samplers.process_conds(
        guider.inner_model, noise, {"positive": conds}, noise.device, latent, mask, extra_args.get("seed")
    )
    return made["positive"]


def add_rule(model: ModelPatcher, judged: Judged) -> ModelPatcher:
    """A clone of the model that obeys the rule as well as those that it already obeys."""
    model = model.clone()
    hooks = model.model_options.get("sampler_post_cfg_function", [])
    before = [hook for hook in hooks if isinstance(hook, Rules)]
    rules = Rules((*(known for hook in before for known in hook.judged), judged))
    others = [hook for hook in hooks if hook not in before]
    if judged.rule.action == "switch conditioning":
        keep_outputs(model)
    place = next((i for i, hook in enumerate(others) if isinstance(hook, RewardGuidance)), len(others))
    model.model_options["sampler_post_cfg_function"] = [*others[:place], rules, *others[place:]]
    _attach(model, rules)
    return model


def check_no_rules(guider: Any, node: str) -> None:
    """Raises WrongConnectionError where the model obeys rules. node: one that makes several candidates of a picture."""
    hooks = guider.model_options.get("sampler_post_cfg_function", [])
    if any(isinstance(hook, Rules) for hook in hooks):
        raise WrongConnectionError(
            f"This model obeys rules, which follow one course of each picture, but {node} makes several candidates of "
            "it in one run. Give it the model from before the Rule nodes, or use another sampler node."
        )


def _attach(model: ModelPatcher, rules: Rules) -> None:
    patchers = [p for one in rules.judged for p in (one.decoder.patcher, *patchers_of(one.reward))]
    model.set_additional_models(KEY, list({id(patcher.model): patcher for patcher in patchers}.values()))
    model.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, rules.end)
    model.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, KEY)
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, reserving(rules.memory_for))
    model.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, rules.sample)
