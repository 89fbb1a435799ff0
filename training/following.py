"""A run from its first step, or from where it was put down, to its end: checkpoints, held-out checks, early stop."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from . import stopping
from .loop import Gradients, Plan, Policy, SavePoint, Source, Step, gradients, train
from .objectives import Objective
from .progress import Progress
from .runs import Run, load


@dataclass
class History:
    """What was seen on the way.

    losses: one a step; checks: [step, held-out loss or minus the reward]; events: what else happened; epochs: of a run
    on its own pictures, each with its number, the step it began at, and scores by name as [mean, standard error].
    """

    losses: list[float] = field(default_factory=list)
    checks: list[list[float]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def cut(self, steps: int) -> None:
        """Forgets what came after a step that the run has gone back to."""
        del self.losses[steps:]
        self.checks = [check for check in self.checks if check[0] <= steps]
        self.epochs = [epoch for epoch in self.epochs if epoch["step"] <= steps]

    def best(self) -> float:
        """The lowest held-out loss so far, infinite before the first."""
        return min((value for _, value in self.checks), default=math.inf)


@dataclass(frozen=True)
class Checks:
    """loss: the held-out loss now, lower is better. It is asked every `every` steps; after `patience` times without a
    new best the run ends, 0 never."""

    loss: Callable[[], float]
    every: int
    patience: int


def fingerprint(settings: Mapping[str, object]) -> str:
    """Equal for runs that are the same run: a checkpoint goes on only with the settings that it was made with."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


class Follower:
    """What happens between two steps. `show` is told each step and may raise to end the run: ComfyUI's interrupt.

    Where several processes share a run, `compute` is how they share a batch, and `agreed` makes one answer of theirs,
    so that all save, or end, after the same step.
    """

    compute: Gradients = staticmethod(gradients)
    agreed: Callable[[bool], bool] = staticmethod(lambda mine: mine)

    def __init__(
        self,
        run: Run,
        progress: Progress,
        settings: Mapping[str, object],
        checks: Checks | None = None,
        show: Callable[[Step, History], None] = lambda step, history: None,
    ) -> None:
        self.run, self.progress, self.settings, self.checks, self.show = run, progress, dict(settings), checks, show
        self.history, self.back = History(), SavePoint(progress)
        self.prefer_best = True
        self.chosen: list[Tensor] | None = None
        self._saved, self._parts = 0, progress.parts
        self._terminating: Callable[[], bool] = lambda: False

    def resume(self) -> bool:
        """Goes on from the newest whole checkpoint of the same settings, if there is one; says whether."""
        checkpoint = self.run.latest()
        if checkpoint is None:
            return False
        step, tensors, about = load(checkpoint)
        if about.get("fingerprint") != fingerprint(self.settings):
            return False
        self.progress.restore(tensors, about["numbers"])  # type: ignore[arg-type]
        self.history, self._saved, self._parts = History(**about["history"]), step, self.progress.parts  # type: ignore[arg-type]
        self.back.take()
        return True

    def follow(self, policy: Policy, source: Source, objective: Objective, plan: Plan) -> None:
        """Trains to the end. Whatever ends it before, the last finished step is on disk; then it is raised again."""
        with stopping.watched() as self._terminating:
            try:
                train(policy, source, objective, plan, self.progress, self._between, self.back, self.compute)
            except BaseException:  # an interrupt of ComfyUI's is no Exception; nor may an hour be lost to anything else
                if self.progress.step > self._saved:
                    self.checkpoint()
                raise
            if self.progress.step > self._saved:
                self.checkpoint()

    def checkpoint(self, best: bool = False) -> None:
        """The whole state, on disk and as the place to go back to; nothing where a weight is no number any more."""
        if not self.progress.is_finite():
            return
        about: dict[str, Any] = {"fingerprint": fingerprint(self.settings), "settings": self.settings}
        about |= {"numbers": self.progress.numbers(), "history": asdict(self.history)}
        tensors = self.progress.tensors()
        self.run.save(self.progress.step, tensors, about, best)
        self.back.take(tensors)
        self._saved, self._parts = self.progress.step, self.progress.parts

    def _between(self, step: Step) -> bool:
        self.history.cut(step.done - 1)
        self.history.losses.append(step.loss)
        stop = self._checked(step.done)
        if self.agreed(self.run.due(step.done) or step.parts > self._parts):
            self.checkpoint()
        if self.agreed(self._terminating()):
            raise SystemExit("Terminated; the run can be resumed.")
        self.show(step, self.history)
        return stop

    def _checked(self, done: int) -> bool:
        """Whether the held-out loss has not fallen for too long."""
        if self.checks is None or done % self.checks.every:
            return False
        if not self.judge(done, self.checks.loss(), self.checks.patience):
            return False
        self.history.events.append(f"step {done}: stopped, the held-out loss did not fall any more")
        return True

    def judge(self, done: int, value: float, patience: int) -> bool:
        """Notes how good the weights are now, lower is better, and keeps the best ones.

        Says whether there was no new best for `patience` times, 0 never.
        """
        best = self.history.best()
        self.history.checks.append([done, value])
        if value < best:
            self.checkpoint(best=True)
        since = [v for _, v in self.history.checks[-patience:]] if patience else []
        return len(self.history.checks) > patience > 0 and min(since) > self.history.best()

    def best_average(self) -> list[Tensor]:
        """The moving average of the best checkpoint, in the order of the parameters; without any it is the last one.

        Where somebody has `chosen` one, that.
        """
        if self.chosen is not None:
            return self.chosen
        best = self.run.best() if self.history.checks and self.prefer_best else None
        if best is None:
            return self.progress.average.values
        _, tensors, about = load(best)
        if about.get("fingerprint") != fingerprint(self.settings):
            return self.progress.average.values
        return [value for _, value in sorted(tensors["average"].items())]
