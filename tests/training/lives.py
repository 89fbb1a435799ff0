"""A run that is killed and goes on, in processes of its own: `python lives.py FOLDER MODE SEED`, see test_survival.py.

The interpreter that has torch forks once for each life, so that ten lives cost one import.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 20, 3


def register_pack() -> None:
    """Makes the pack importable as feedback_loop, as tests/conftest.py does."""
    spec = importlib.util.spec_from_file_location(
        "feedback_loop", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["feedback_loop"] = module
    spec.loader.exec_module(module)


def live(
    folder: Path, pause: float = 0.0, steps: int = STEPS, at_sync: int = 0, terminal: bool = False,
    online: bool = False, at_file: str = "",
) -> None:  # fmt: skip
    """The run, from its start or its last checkpoint, to its end; `state.safetensors` then says how it ended.

    pause: seconds a step; at_sync: the number of the flush to disk before which the process is killed, 0 never.
    online: on its own pictures, and with a LoRA's file at the end; at_file: how the name of the file begins before
    whose flush the process is killed.
    """
    from safetensors.torch import save_file

    from feedback_loop.tests.training.small import follower_of, online_of
    from feedback_loop.training import lora_files, runs, stopping
    from feedback_loop.training import online as epochs

    if terminal:
        stopping.install()
    if at_sync:
        kill_at(runs, at_sync)
    if at_file:
        kill_before(epochs, at_file)
        kill_before(lora_files, at_file)

    def begin_step() -> None:
        with (folder / "begun").open("a") as file:
            file.write("step\n")
        time.sleep(pause)

    made = online_of if online else follower_of
    follower, policy, source, objective, plan = made(folder, EVERY, begin_step, steps)
    follower.resume()
    follower.follow(policy, source, objective, plan)
    if online and not (folder / "lora.safetensors").exists():
        layers = policy.adapters.low_rank(follower.progress.average.values)
        lora_files.save(folder / "lora.safetensors", layers, {}, {f"{lora_files.PREFIX}{path}" for path in layers})
    state = {f"{g}.{n}": t for g, named in follower.progress.tensors().items() for n, t in named.items()}
    save_file(state, folder / "state.safetensors")


def kill_at(runs: Any, count: int) -> None:
    flush, seen = runs.sync, [0]

    def sync(path: Path) -> None:
        seen[0] += 1
        if seen[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(path)

    runs.sync = sync


def kill_before(module: Any, name: str) -> None:
    """The process dies before the module flushes a file or folder whose name begins so."""
    flush = module.sync

    def sync(path: Path) -> None:
        if path.name.startswith(name):
            os.kill(os.getpid(), signal.SIGKILL)
        flush(path)

    module.sync = sync


def born(**how: Any) -> int:
    """A new life's process."""
    child = os.fork()
    if child == 0:
        live(**how)
        os._exit(0)
    return child


def killed(folder: Path, seed: int, online: bool = False) -> int:
    """Lives that are killed after a random while, until one gets to the end; how many were killed."""
    rng, lives, longest = random.Random(seed), 0, 0.3
    while True:
        child = born(folder=folder, pause=0.05 if online else 0.01, online=online)
        time.sleep(rng.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return lives
        lives, longest = lives + 1, longest * 1.1


def killed_at_each_flush(folder: Path) -> int:
    """Life n dies before its n-th flush to disk: inside every part of a checkpoint; how many were killed."""
    lives = 0
    while True:
        child = born(folder=folder, at_sync=lives + 1)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return lives
        lives += 1


FILES = (".drawn-epoch-00001", "rollouts", ".epoch-00001", "rollouts", ".lora", "run")
"""In the order in which a run on its own pictures comes to them: pictures of the second epoch written, named, scored,
named again, then the LoRA written, and named; "run" is the folder that it is in."""


def killed_at_each_file(folder: Path) -> int:
    """Lives that die inside of each way to keep an epoch or a LoRA, and a last one to the end; how many died."""
    codes: list[int] = []
    for name in (*FILES, ""):
        child = born(folder=folder, online=True, at_file=name)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return codes.count(-signal.SIGKILL) if codes[-1] == 0 else -1


def terminated(folder: Path) -> int:
    """One life that is asked to end once it has begun; its exit code."""
    child = born(folder=folder, pause=0.05, steps=10_000, terminal=True)
    while not list(folder.glob("step-*")):
        time.sleep(0.01)
    time.sleep(0.12)
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    folder, mode, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    register_pack()
    import torch

    torch.set_num_threads(1)
    answer = {
        "whole": lambda: live(folder),
        "killed": lambda: killed(folder, seed),
        "flush": lambda: killed_at_each_flush(folder),
        "terminated": lambda: terminated(folder),
        "online": lambda: live(folder, online=True),
        "online killed": lambda: killed(folder, seed, online=True),
        "online files": lambda: killed_at_each_file(folder),
    }[mode]()
    sys.stdout.write(f"{answer or 0}\n")


if __name__ == "__main__":
    main()
