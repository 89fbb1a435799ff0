"""Many candidates of a picture inside one run of a sampler, each made only as far as it deserves.

A candidate that goes on is not split off and continued, which would make multistep samplers forget: it is run from its
start again, and the estimates that the model gave before are given again from memory. So what comes out is, bit for
bit, the plain run of its noise, at the cost of its new steps alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..feedback.rewards.base import Reward
from ..guidance.search import Best, Stage, affordable, cost, kept, neighbour, promising, stages
from .asked import asked_by, filled
from .candidates import Candidate, Tape, joined
from .decoder import check_pictures, decoder_of
from .denoiser import WrongConnectionError
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
    plain run. rounds: that were made. budget: evaluations that were allowed; 0 for no limit."""

    best: Best
    tried: int
    evaluations: int
    plain: int
    rounds: int
    budget: int = 0


class _Paused(Exception):
    """A candidate has come as far as it should for now."""


class _Spent(Exception):
    """The budget allows no further evaluation."""


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
        self.extra_args, self.options = extra_args, options
        self.steps, self.ends_clean = len(sigmas) - 1, bool(sigmas[-1] == 0)
        self.noise = plan.noise.to(x)
        self.evaluations, self.made, self.tried = 0, 0, 0
        self.best: Best | None = None
        self.asked = asked_by(plan.function, model, x, sigmas, extra_args, options) if plan.budget else None
        self.spare = 0  # evaluations that neither are spent nor needed for this round
        self.planned = plan.rounds * cost(stages(plan.candidates, self.steps, plan.halving))

    def search(self) -> Found:
        if self.asked is not None and self.plan.budget < self.asked[-1]:
            raise WrongConnectionError(too_small(self.plan.budget, self.steps, self.asked[-1]))
        seeds = seeds_of(self.extra_args.get("seed"), self.plan.rounds * self.plan.candidates)
        number = 0
        try:
            for number in range(self.plan.rounds):
                rows = slice(number * self.plan.candidates, (number + 1) * self.plan.candidates)
                self._round(self._noises(seeds[rows]))
                if self._good_enough() or not self._affordable(self.plan.candidates):
                    break
        except _Spent:
            pass  # a sampler that asks more of some pictures than of others; what is finished stands
        if self.best is None or self.asked is None:
            raise WrongConnectionError(too_small(self.plan.budget, self.steps, None))
        return Found(self.best, self.tried, self.evaluations, self.asked[-1], number + 1, self.plan.budget)

    def _noises(self, seeds: list[int]) -> list[Callable[[], Tensor]]:
        """What makes each candidate's noise. The first of the first round is the given one."""
        around = self.noise if self.best is None else self.best.noise

        def near(seed: int) -> Tensor:
            return neighbour(around, fresh_noise(self.noise, seed), self.plan.cosine)

        if self.best is not None:
            return [lambda s=seed: near(s) for seed in seeds]
        others = near if self.plan.neighbours else lambda seed: fresh_noise(self.noise, seed)
        return [lambda: self.noise, *(lambda s=seed: others(s) for seed in seeds[1:])]

    def _round(self, noises: list[Callable[[], Tensor]]) -> None:
        if not self.plan.halving:
            return self._one_by_one(noises)
        candidates = [Candidate(make()) for make in noises]
        if self.plan.budget and self.asked is None:
            self._finish(candidates[0])  # only a whole run tells what this sampler asks
        count = 1 if self._good_enough() else self._affordable(len(candidates), already=len(candidates[0].tape))
        return self._halved(candidates[: max(count, 1)])

    def _halved(self, candidates: list[Candidate]) -> None:
        planned = stages(len(candidates), self.steps, True)
        if self.plan.budget and self.asked is not None:
            done = self.evaluations - len(candidates[0].tape)
            self.spare = self.plan.budget - done - cost(planned, self.asked)
        for stage, following in zip(planned[:-1], planned[1:], strict=True):
            scores = self._looked_at(candidates, stage)
            if self._good_enough():
                return
            candidates = [joined(candidates, row) for row in kept(scores, following.count)]
        self._finish(candidates[0])

    def _looked_at(self, candidates: list[Candidate], stage: Stage) -> Tensor:
        """Rewards (N, B) of the candidates' estimates at a stage. Once all pictures look good enough, those that do are
        finished before the others are gone on with; if they are good enough indeed, that is all."""
        scores: list[Tensor] = []
        tried = False
        for one in candidates:
            self._advance(one, stage.steps)
            assert one.estimate is not None  # tells types, guards nothing # nosec B101
            scores.append(self.score(one.estimate))
            ahead = None if tried else promising(torch.stack(scores), self.best, self.plan.threshold)
            if ahead is not None and self._can_go_ahead(stage):
                tried = True
                self._finish(joined(candidates[: len(scores)], ahead))
                if self._good_enough():
                    break
        return torch.stack(scores)

    def _can_go_ahead(self, stage: Stage) -> bool:
        """Whether finishing a picture early leaves enough of the budget for the round as planned."""
        if not self.plan.budget or self.asked is None:
            return True
        needed = self.asked[-1] - self.asked[stage.steps]
        if needed > self.spare:
            return False
        self.spare -= needed
        return True

    def _one_by_one(self, noises: list[Callable[[], Tensor]]) -> None:
        """Whole runs, until one is good enough or the budget is spent."""
        for make in noises:
            if self.best is not None and (self._good_enough() or not self._affordable(1)):
                break
            self._finish(Candidate(make()))

    def _good_enough(self) -> bool:
        return self.best is not None and self.best.reached(self.plan.threshold)

    def _finish(self, candidate: Candidate) -> None:
        """Makes the candidate to its end and keeps the pictures that are better than the best."""
        self._advance(candidate, self.steps)
        assert candidate.estimate is not None  # tells types, guards nothing # nosec B101
        scores = self.score(candidate.estimate if self.ends_clean else candidate.tape[-1])
        if self.best is None:
            self.best = Best(candidate.noise, candidate.estimate, scores)
        else:
            self.best = self.best.improved(candidate.noise, candidate.estimate, scores)

    def _advance(self, candidate: Candidate, steps: int) -> None:
        """Makes the candidate until so many steps are done; `estimate` is then its clean estimate, or its end."""
        tape, at = Tape(self.model, candidate, self.plan.own_inpaint_noise, self._ask), {}

        def on_step(info: dict[str, Any]) -> None:
            at[info["i"] + 1] = tape.at
            if tape.fresh:
                self.made += 1
                self.plan.show(self.made, max(self.planned, self.made), info["denoised"])
            if info["i"] + 1 == steps < self.steps:
                candidate.estimate = info["denoised"]
                raise _Paused

        start = started(self.model, self.sigmas, candidate.noise)
        self.tried += not candidate.tape
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
            self._learn(filled(at, self.steps, tape.at))
        except _Paused:
            pass

    def _ask(self) -> None:
        if self.plan.budget and self.evaluations >= self.plan.budget:
            raise _Spent
        self.evaluations += 1

    def _learn(self, asked: list[int]) -> None:
        """What a whole run asked; of samplers that ask more of some pictures, the most that any did."""
        known = self.asked or asked
        self.asked = [max(one, other) for one, other in zip(known, asked, strict=True)]

    def _affordable(self, count: int, already: int = 0) -> int:
        if not self.plan.budget or self.asked is None:
            return count
        left = self.plan.budget - self.evaluations + already
        return affordable(count, self.plan.halving, left, self.asked)


def too_small(budget: int, steps: int, whole: int | None) -> str:
    needs = "" if whole is None else f", for which this sampler needs {whole}"
    return (
        f"A budget of {budget} denoiser evaluations is less than one run of {steps} steps{needs}. "
        "Raise it, or set it to 0 for no limit."
    )
