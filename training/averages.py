"""What the LoRA would have been as each epoch began, kept so that a run can be taken back to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .runs import save_whole

NEWEST = 8
"""Epochs of which every one is there. One that is divisible by 2^k stays while it is among the last 8 * 2^k: of n
epochs about 8 + 4 log2(n / 8) are kept, and the last before any other is less than a third of that one's age away."""


@dataclass(frozen=True)
class Averages:
    """The moving averages of a run on its own pictures. mark: of the run; those of others are not taken."""

    folder: Path
    mark: str

    def keep(self, number: int, values: Sequence[Tensor]) -> None:
        """Writes the average that stood at the beginning of an epoch whole or not at all, and tidies up."""
        named = {f"{i:05}": value for i, value in enumerate(values)}
        save_whole(self._path(number), named, {"mark": self.mark})
        for other in self.folder.glob("epoch-*.safetensors"):
            if not is_kept(_number(other), number):
                other.unlink(missing_ok=True)

    def last_until(self, number: int) -> tuple[int, list[Tensor]] | None:
        """(epoch, values) of the last one that is kept and no later than this; None where there is none."""
        from safetensors import safe_open

        found = [path for path in self.folder.glob("epoch-*.safetensors") if _number(path) <= number]
        for path in sorted(found, key=_number, reverse=True):
            with safe_open(path, framework="pt") as opened:
                if (opened.metadata() or {}).get("mark") == self.mark:
                    return _number(path), [opened.get_tensor(name) for name in sorted(opened.keys())]
        return None

    def _path(self, number: int) -> Path:
        return self.folder / f"epoch-{number:05}.safetensors"


def is_kept(number: int, newest: int) -> bool:
    """Whether an epoch's weights are worth their room; the first, before any step, always."""
    rounds = number & -number  # the largest power of 2 that divides it
    return number == 0 or newest - number < NEWEST * rounds


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("epoch-"))
