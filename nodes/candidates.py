"""One candidate of a search: where it starts, and what the model has answered on its way so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
from torch import Tensor

from ..guidance.search import mixed


@dataclass(eq=False)
class Candidate:
    """Starting noise (B, ...) and the estimates that the model has given on its way."""

    noise: Tensor
    tape: list[Tensor] = field(default_factory=list)
    estimate: Tensor | None = None


def joined(candidates: Sequence[Candidate], chosen: Tensor) -> Candidate:
    """One candidate of the batch, whose picture b is that of candidate `chosen[b]`: rows do not see each other.

    Of candidates that have come to different places, what all of them have an answer for is kept.
    """
    first = int(chosen[0])
    if bool((chosen == first).all()):
        return candidates[first]
    tapes = zip(*(one.tape for one in candidates), strict=False)
    return Candidate(mixed([one.noise for one in candidates], chosen), [mixed(answers, chosen) for answers in tapes])


class Tape:
    """The model as the sampler sees it: what was answered before is answered again, in order, and the rest is asked.

    asking: is called before each new question, and may refuse it. at: answers given. fresh: whether the last one was
    new.
    """

    def __init__(self, model: Any, candidate: Candidate, own_inpaint_noise: bool, asking: Callable[[], None]) -> None:
        self._model, self._candidate, self._own, self._asking = model, candidate, own_inpaint_noise, asking
        self.at, self.fresh = 0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        tape = self._candidate.tape
        self.fresh = self.at == len(tape)
        if self.fresh:
            comfy.model_management.throw_exception_if_processing_interrupted()
            self._asking()
            if not self._own:
                self._model.noise = self._candidate.noise  # an inpainted part keeps to the candidate's noise
            tape.append(self._model(x, sigma, **extra_args))
        self.at += 1
        return tape[self.at - 1].clone()
