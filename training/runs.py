"""Checkpoints that survive: `run/step-000120/` holds tensors and a manifest of their hashes, or it does not exist."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from .lora_files import sync

MANIFEST = "manifest.json"
BEST = "best.json"
PASSING = ("rollouts", "averages", "made.safetensors")
"""What lies beside the checkpoints of a run and is of use to nobody once its LoRA is there."""


@dataclass
class Run:
    """The checkpoints of one training run.

    folder: made at the first checkpoint. keep: how many of the newest stay, beside the best. every_steps,
    every_minutes: when `due` says that it is time for another one.
    """

    folder: Path
    keep: int = 2
    every_steps: int = 200
    every_minutes: float = 5.0
    _last_step: int = 0
    _last_time: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        """Whether enough steps or minutes have passed since the last checkpoint, or since the start."""
        minutes = (time.monotonic() - self._last_time) / 60
        return step - self._last_step >= self.every_steps or minutes >= self.every_minutes

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, object], best: bool = False
    ) -> Path:
        """Writes `step-NNNNNN`: one safetensors file for each group of tensors, then the manifest, then its name.

        best: it is the best so far, and stays until another one is.
        """
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        temporary, final = self.folder / f".step-{step:06}.{os.getpid()}.part", self.folder / f"step-{step:06}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for group, named in tensors.items():
            save_file(
                {name: t.detach().cpu().contiguous() for name, t in named.items()}, temporary / f"{group}.safetensors"
            )
        files = {file.name: digest(file) for file in sorted(temporary.iterdir())}
        text = json.dumps({"step": step, "files": files, "about": dict(about)}, indent=1, sort_keys=True)
        (temporary / MANIFEST).write_text(text, encoding="utf-8")
        for file in (*temporary.iterdir(), temporary):
            sync(file)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync(self.folder)
        self._last_step, self._last_time = step, time.monotonic()
        if best:
            write_whole(self.folder / BEST, json.dumps({"step": step}))
        self._tidy()
        return final

    def latest(self) -> Path | None:
        """The newest checkpoint whose files are all there and unchanged."""
        return next((path for path in reversed(self.checkpoints()) if is_valid(path)), None)

    def best(self) -> Path | None:
        """The checkpoint that was called the best, if it is whole."""
        try:
            path = self.folder / f"step-{json.loads((self.folder / BEST).read_text(encoding='utf-8'))['step']:06}"
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return path if is_valid(path) else None

    def checkpoints(self) -> list[Path]:
        """Every step's folder, oldest first, valid or not."""
        return sorted(self.folder.glob("step-*"), key=lambda path: (len(path.name), path.name))  # 999999, 1000000

    def _tidy(self) -> None:
        best, valid = self.best(), [path for path in self.checkpoints() if is_valid(path)]
        for path in valid[: -self.keep]:
            if path != best:
                shutil.rmtree(path)
        for left in self.folder.glob(".*.part"):  # by a writer that was killed; one run has one writer
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def tidy_finished(folder: Path, is_finished: Callable[[str], bool]) -> int:
    """Deletes what only an unfinished run needs of the runs in a folder that `is_finished`, by name: the pictures that
    it drew, as latents with their scores, and the weights of its epochs. Checkpoints stay. Returns the bytes freed."""
    freed = 0
    for run in sorted(folder.iterdir()) if folder.is_dir() else ():
        if run.is_symlink() or not run.is_dir() or not is_finished(run.name):
            continue
        for part in (run / name for name in PASSING):
            if part.is_symlink() or not part.exists():
                continue
            freed += sum(file.lstat().st_size for file in (part, *part.rglob("*")) if file.is_file())
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    return freed


def load(checkpoint: Path) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, object]]:
    """(step, tensors by group, what was said about it). Raises ValueError when the checkpoint is not whole."""
    from safetensors.torch import load_file

    if not is_valid(checkpoint):
        raise ValueError(f"The checkpoint {checkpoint} is damaged: delete it, an older one will be used.")
    manifest = _manifest(checkpoint)
    tensors = {name.removesuffix(".safetensors"): load_file(checkpoint / name) for name in manifest["files"]}
    return manifest["step"], tensors, manifest["about"]


def about(checkpoint: Path) -> dict[str, object]:
    """What was said about a checkpoint, without its tensors."""
    return _manifest(checkpoint)["about"]


def is_valid(checkpoint: Path) -> bool:
    """Whether there is a manifest and every file that it names has the hash that it says."""
    try:
        files = _manifest(checkpoint)["files"]
        return all(digest(checkpoint / name) == wanted for name, wanted in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _manifest(checkpoint: Path) -> dict:
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))


def write_whole(path: Path, text: str) -> None:
    """The file holds all of the text, or what it held before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def save_whole(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """A safetensors file in a folder that is made if need be; it holds all of the tensors, or what it held before."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    named = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(named, temporary, metadata=dict(about))
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def digest(file: Path) -> str:
    """sha256:<hex> of a file's bytes."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            found.update(chunk)
    return f"sha256:{found.hexdigest()}"
