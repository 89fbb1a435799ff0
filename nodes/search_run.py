"""Many candidates of a picture inside one run of a sampler, each made only as far as it deserves.

A candidate that goes on is not split off and continued, which would make multistep samplers forget: it is run from its
start again, and the estimates that the model gave before are given again from memory. So what comes out is, bit for
bit, the plain run of its noise, at the cost of its new steps alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..feedback.rewards.base import Reward
from ..guidance.search import Best, Stage, affordable, cost, kept, mixed, neighbour, stages
from .decoder import check_pictures, decoder_of
from .ruled import check_no_rules
from .scoring import LatentScores
from .starts import fresh_noise, seeds_of, started

Show = Callable[[int, int, Tensor], None]
"""Steps made, steps planned, and a clean estimate of each picture in model space."""


@dataclass(frozen=True, eq=False)
class Search:
    """A SAMPLER's function that searches. function: the sampler's own. noise: the first candidate, as NOISE gives it.

    neighbours: the first round looks around that noise instead of anywhere. cosine: how near. threshold: stop when
    every picture's reward is there. budget: denoiser evaluations a picture; 0 for no limit.
    """

    function: Callable[..., Tensor]
    reward: Reward
    vae: Any
    noise: Tensor
    candidates: int
    halving: bool = True
    rounds: int = 1
    neighbours: bool = False
    cosine: float = 0.95
    threshold: float | None = None
    budget: int = 0
    decoder: str = "auto"
    own_inpaint_noise: bool = False
    show: Show = lambda done, planned, estimate: None
    found: list[Found] = field(default_factory=list)

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        **options: Any,
    ) -> Tensor:
        guider = model.inner_model
        check_pictures(x.shape)
        check_no_rules(guider, "Best of N")
        score = LatentScores(self.reward, decoder_of(self.vae, guider.model_patcher, self.decoder))
        try:
            score.load(guider, x.shape)
            run = _Searching(self, score, model, x, sigmas, dict(extra_args or {}), options)
            self.found.append(run.search())
            return self.found[-1].best.latents
        finally:
            score.release()


@dataclass(frozen=True, eq=False)
class Found:
    """best: of each picture. tried: candidates a picture. evaluations: of the denoiser, a picture. plain: those of one
    plain run. rounds: that were made."""

    best: Best
    tried: int
    evaluations: int
    plain: float
    rounds: int


class _Paused(Exception):
    """A candidate has come as far as it should for now."""


@dataclass(eq=False)
class _Candidate:
    """Starting noise (B, ...) and the estimates that the model has given on its way."""

    noise: Tensor
    tape: list[Tensor] = field(default_factory=list)
    estimate: Tensor | None = None


class _Searching:
    def __init__(
        self,
        plan: Search,
        score: LatentScores,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self.plan, self.score, self.model, self.sigmas = plan, score, model, sigmas
        self.extra_args, self.options, self.like = extra_args, options, x
        self.steps = len(sigmas) - 1
        self.noise = plan.noise.to(x)
        self.evaluations, self.made, self.tried = 0, 0, 0
        self.per_step = 1  # evaluations, as measured between two steps
        self.planned = plan.rounds * cost(stages(plan.candidates, self.steps, plan.halving))

    def search(self) -> Found:
        best: Best | None = None
        seeds = seeds_of(self.extra_args.get("seed"), self.plan.rounds * self.plan.candidates)
        for number in range(self.plan.rounds):
            rows = slice(number * self.plan.candidates, (number + 1) * self.plan.candidates)
            noises = self._noises(best, seeds[rows])
            best = self._round(noises, best)
            if best.reached(self.plan.threshold) or not self._affordable(self.plan.candidates):
                break
        assert best is not None  # tells types, guards nothing # nosec B101
        return Found(best, self.tried, self.evaluations, self.evaluations / max(self.made, 1) * self.steps, number + 1)

    def _noises(self, best: Best | None, seeds: list[int]) -> list[Callable[[], Tensor]]:
        """What makes each candidate's noise. The first of the first round is the given one."""
        around = self.noise if best is None else best.noise

        def near(seed: int) -> Tensor:
            return neighbour(around, fresh_noise(self.noise, seed), self.plan.cosine)

        if best is not None:
            return [lambda s=seed: near(s) for seed in seeds]
        others = near if self.plan.neighbours else lambda seed: fresh_noise(self.noise, seed)
        return [lambda: self.noise, *(lambda s=seed: others(s) for seed in seeds[1:])]

    def _round(self, noises: list[Callable[[], Tensor]], best: Best | None) -> Best:
        if not self.plan.halving:
            return self._one_by_one(noises, best)
        candidates = [_Candidate(make()) for make in noises]
        first = stages(len(candidates), self.steps, True)[0]
        self._advance(candidates[0], first.steps)  # tells how many evaluations the sampler makes a step
        count = max(self._affordable(len(candidates), already=len(candidates[0].tape)), 1)
        candidates = candidates[:count]
        self.tried += count
        for stage, following in _pairs(stages(count, self.steps, True)):
            scores = torch.stack([self._scored(one, stage) for one in candidates])
            if following is None:
                return self._better(best, candidates[0], scores[0])
            chosen = kept(scores, following.count)
            candidates = [_joined(candidates, row) for row in chosen]
        raise AssertionError("a plan has a last stage")

    def _one_by_one(self, noises: list[Callable[[], Tensor]], best: Best | None) -> Best:
        """Whole runs, until one is good enough or the budget is spent."""
        for make in noises:
            if best is not None and (best.reached(self.plan.threshold) or not self._affordable(1)):
                break
            candidate = _Candidate(make())
            self.tried += 1
            best = self._better(best, candidate, self._scored(candidate, Stage(1, self.steps)))
        assert best is not None  # tells types, guards nothing # nosec B101
        return best

    def _better(self, best: Best | None, candidate: _Candidate, scores: Tensor) -> Best:
        assert candidate.estimate is not None  # tells types, guards nothing # nosec B101
        if best is None:
            return Best(candidate.noise, candidate.estimate, scores)
        return best.improved(candidate.noise, candidate.estimate, scores)

    def _scored(self, candidate: _Candidate, stage: Stage) -> Tensor:
        self._advance(candidate, stage.steps)
        assert candidate.estimate is not None  # tells types, guards nothing # nosec B101
        if stage.steps < self.steps or self.sigmas[-1] == 0:
            return self.score(candidate.estimate)
        return self.score(candidate.tape[-1])

    def _advance(self, candidate: _Candidate, steps: int) -> None:
        """Makes the candidate until so many steps are done; `estimate` is then its clean estimate, or its end."""
        tape = _Tape(self.model, candidate, self.plan.own_inpaint_noise)

        def on_step(info: dict[str, Any]) -> None:
            self.per_step = max(self.per_step, tape.since_last_step())
            if tape.fresh:
                self.made += 1
                self.plan.show(self.made, max(self.planned, self.made), info["denoised"])
            if info["i"] + 1 == steps < self.steps:
                candidate.estimate = info["denoised"]
                raise _Paused

        start = started(self.model, self.sigmas, candidate.noise)
        try:
            candidate.estimate = self.plan.function(
                tape,
                start,
                self.sigmas,
                extra_args=dict(self.extra_args),
                callback=on_step,
                disable=True,
                **self.options,
            )
        except _Paused:
            pass
        finally:
            self.evaluations += tape.calls

    def _affordable(self, count: int, already: int = 0) -> int:
        if not self.plan.budget:
            return count
        left = self.plan.budget - self.evaluations + already
        return affordable(count, self.steps, self.plan.halving, left, self.per_step)


class _Tape:
    """The model as the sampler sees it: what was answered before is answered again, in order, and the rest is asked.

    fresh: whether the last answer was a new one.
    """

    def __init__(self, model: Any, candidate: _Candidate, own_inpaint_noise: bool) -> None:
        self._model, self._candidate, self._own = model, candidate, own_inpaint_noise
        self._at, self._step, self.calls, self.fresh = 0, 0, 0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        tape = self._candidate.tape
        self.fresh = self._at == len(tape)
        if self.fresh:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if not self._own:
                self._model.noise = self._candidate.noise  # an inpainted part keeps to the candidate's noise
            tape.append(self._model(x, sigma, **extra_args))
            self.calls += 1
        self._at += 1
        return tape[self._at - 1].clone()

    def since_last_step(self) -> int:
        """Answers since this was asked at the step before."""
        before, self._step = self._step, self._at
        return self._at - before


def _joined(candidates: list[_Candidate], chosen: Tensor) -> _Candidate:
    """One candidate of the batch, whose picture b is that of candidate `chosen[b]`: rows do not see each other."""
    tapes = zip(*(one.tape for one in candidates), strict=True)
    return _Candidate(mixed([one.noise for one in candidates], chosen), [mixed(answers, chosen) for answers in tapes])


def _pairs(planned: list[Stage]) -> list[tuple[Stage, Stage | None]]:
    return list(zip(planned, [*planned[1:], None], strict=True))
