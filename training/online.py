"""Training on what the model itself makes: roll out, score, train on it, and again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from .loop import EndOfRun
from .objectives import Batch
from .runs import save_whole

Tensors = dict[str, Tensor]
Build = Callable[["Epoch", Tensor], "Callable[[int], Batch] | None"]
"""An epoch and an advantage for each picture -> the batch of each update, None where there is nothing to learn."""


@dataclass(frozen=True)
class Epoch:
    """The pictures of one epoch, as they have to be kept until it is done.

    prompts, rewards: one a picture; tensors: latents (N, C, *spatial) in model space and whatever else the objective
    trains on, with one row a picture; watched: other scores by name, which are looked at and not trained on; mark: of
    the run that they are of. Pictures that were only drawn have no rewards yet.
    """

    number: int
    prompts: Sequence[str]
    rewards: Sequence[float]
    tensors: Tensors
    watched: Mapping[str, Sequence[float]] = field(default_factory=dict)
    mark: str = ""

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        told = {"number": self.number, "prompts": list(self.prompts), "rewards": list(self.rewards)}
        told |= {"watched": {name: list(values) for name, values in self.watched.items()}, "mark": self.mark}
        save_whole(path, self.tensors, {"epoch": json.dumps(told)})

    @classmethod
    def load(cls, path: Path) -> Epoch:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as opened:
            told = json.loads(opened.metadata()["epoch"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
        return cls(told["number"], told["prompts"], told["rewards"], tensors, told["watched"], told.get("mark", ""))

    def check(self) -> None:
        """Raises ValueError for scores that are no numbers: nothing could be learned from them."""
        for name, scores in {"the reward": self.rewards, **self.watched}.items():
            if wrong := sum(not math.isfinite(score) for score in scores):
                raise ValueError(
                    f"{wrong} of {len(scores)} scores by {name} are not a number. The pictures are kept and will be "
                    "scored again when this node runs again: look at what scores them first."
                )


@dataclass
class OnlineSource:
    """A source that rolls out anew every `updates` steps, with the model as it then is.

    roll: makes the pictures of an epoch, and scores them unless `score` does: what was drawn is then kept while it is
    scored, which may take people a day, and is not drawn again. advantages_of: an epoch -> (N,). begin: called before
    an epoch is drawn, with the steps done, to let the old view follow; once more where the run is put down before the
    next step. judge: told of each epoch when it was drawn; returns why the run has to end, or "". folder: where epochs
    are kept, so that no picture is lost; setbacks: how often the run went back so far, after which other pictures are
    made. mark: of the run; pictures of others are not taken.
    """

    updates: int
    roll: Callable[[int], Epoch]
    advantages_of: Callable[[Epoch], Tensor]
    build: Build
    folder: Path
    begin: Callable[[int], None] = lambda step: None
    judge: Callable[[int, Epoch], str] = lambda step, epoch: ""
    setbacks: Callable[[], int] = lambda: 0
    score: Callable[[Epoch], Epoch] | None = None
    mark: str = ""
    _now: tuple[int, int] | None = None
    _batch: Callable[[int], Batch] | None = None

    def batch_at(self, step: int) -> Batch | None:
        """Raises EndOfRun with the reason that `judge` gave."""
        number, update = divmod(step, self.updates)
        if self._now != (number, self.setbacks()):
            self._open(number, step, update == 0)
        return None if self._batch is None else self._batch(update)

    def _open(self, number: int, step: int, fresh: bool) -> None:
        if fresh:
            self.begin(step)
        epoch = self._epoch(number)
        if fresh and (why := self.judge(step, epoch)):
            raise EndOfRun(why)
        advantage = self.advantages_of(epoch)
        self._batch = self.build(epoch, advantage) if bool((advantage != 0).any()) else None
        self._now = (number, self.setbacks())

    def _epoch(self, number: int) -> Epoch:
        path = self.path(number)
        epoch = self._kept(path)
        if epoch is None:
            epoch = self.roll(number) if self.score is None else self.score(self._drawn(number))
            epoch = replace(epoch, mark=self.mark)
            epoch.check()  # before it is kept: a run could never get past such a file
            epoch.save(path)
        self._drawn_path(number).unlink(missing_ok=True)
        return epoch

    def _drawn(self, number: int) -> Epoch:
        path = self._drawn_path(number)
        if (kept := self._kept(path)) is not None:
            return kept
        epoch = replace(self.roll(number), mark=self.mark)
        epoch.save(path)
        return epoch

    def _kept(self, path: Path) -> Epoch | None:
        epoch = Epoch.load(path) if path.exists() else None
        return epoch if epoch is not None and epoch.mark == self.mark else None

    def _drawn_path(self, number: int) -> Path:
        return self.path(number).with_name(f"drawn-{self.path(number).name}")

    def path(self, number: int) -> Path:
        """Where an epoch is kept."""
        return self.folder / f"epoch-{number:05}-{self.setbacks()}.safetensors"


def prompts_of_epoch(prompts: Sequence[str], number: int, count: int, group: int, seed: int) -> list[str]:
    """`count` of the prompts, `group` times each: all come once before any comes twice, in another order each time."""
    chosen: list[str] = []
    start = number * count
    for place in range(start, start + count):
        round_, index = divmod(place, len(prompts))
        generator = torch.Generator().manual_seed((seed * 1_000_003 + round_) % 2**63)
        chosen.append(prompts[int(torch.randperm(len(prompts), generator=generator)[index])])
    return [prompt for prompt in chosen for _ in range(group)]


def seeds_of_epoch(number: int, count: int, seed: int) -> list[int]:
    """A seed for each picture, none of which comes twice in a run."""
    return [(seed * 1_000_003 + number * count + i) % 2**64 for i in range(count)]


def old_decay(step: int, rate: float = 0.001, most: float = 0.5) -> float:
    """DiffusionNFT's: how much of itself the old view keeps; at first it is the model as it is."""
    return min(most, rate * step)
