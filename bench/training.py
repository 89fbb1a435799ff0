"""Training next to other trainers, and what it learns from how many ratings, on the demo model.

    python bench/training.py [--seeds 3] [--fresh 100] [--folder output/bench_training] [--only PART ...]

Needs ComfyUI (COMFYUI_PATH) and Linux. Every figure is of a process of its own, with one thread. Parts, each described
in its file:

- `speed` (training_speed.py): images a second and memory, next to ComfyUI's TrainLoraNode and diffusers' script.
- `online` (training_online.py): NFT and PPO next to TRL's DDPOTrainer, which gets an environment of its own in the
  folder; where that cannot be made, its rows say so.
- `curve` (training_curve.py): the true taste gained from 50 to 500 ratings.

Rates are by CPU time too, since other work on the machine stretches the wall's: of one thread, it is the wall time of a
quiet machine. What is finished is kept in the folder and not run again; started twice, the two share what there is to
do. Seed 0 comes first, in every part. Writes report.json, table.md and curve.png there.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rows
import training_report

HERE = Path(__file__).resolve().parent
SPEED = (
    "ours, SFT", "ours, SFT, checkpointing", "ours, SFT, attention", "TrainLoraNode", "TrainLoraNode, fp32",
    "train_text_to_image_lora", "train_text_to_image_lora, on latents",
)  # fmt: skip
BATCHES = (1, 2, 4, 8)
ONLINE = ("NFT", "PPO", "DDPOTrainer", "DDPOTrainer, its own rate")
CURVE = (("SFT, and more", "NFT online", "SFT"), ("NFT", "KTO", "DPO"))
"""The first ones come first, so that a run that is cut short says the most."""
RATINGS = (200, 50, 500, 100)
PARTS = ("speed", "curve", "online")


def cells(part: str, seed: int, asked: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """The key of each figure in the report, and the command that prints it."""
    common = ["--seed", str(seed), "--folder", str(asked.folder / part)]
    if part == "speed":
        for trainer in SPEED:
            for batch in BATCHES:
                yield f"speed|{trainer}|{batch}|{seed}", ["training_speed.py", trainer, "--batch", str(batch), *common]
    elif part == "online":
        own = ["--epochs", str(asked.epochs), "--ddpo", str(asked.folder / "ddpo" / "bin" / "python"), *common]
        for trainer in ONLINE:
            yield f"online|{trainer}|{seed}", ["training_online.py", trainer, *own]
    else:
        for way, count in [(way, count) for ways in CURVE for count in RATINGS for way in ways]:
            own = ["--ratings", str(count), "--fresh", str(asked.fresh), *common]
            yield f"curve|{way}|{count}|{seed}", ["training_curve.py", way, *own]


def ddpo_environment(folder: Path) -> None:
    """The one that training_ddpo.py runs in, once; what pip says goes to a log beside it."""
    with (folder / "ddpo.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # another process of this benchmark may be making it
        if (folder / "ddpo" / "made").exists():
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / "ddpo"], check=True)
        wanted = HERE / "training_ddpo_requirements.txt"
        pip = [folder / "ddpo" / "bin" / "python", "-m", "pip", "install", "-r", wanted]
        if subprocess.run(pip, stdout=log, stderr=log).returncode == 0:
            (folder / "ddpo" / "made").touch()


def run(command: list[str], log: Path) -> dict[str, Any]:
    """What the cell printed last, or what went wrong in its own words."""
    with log.open("a") as errors:
        ended = subprocess.run([sys.executable, *command], cwd=HERE, stdout=subprocess.PIPE, stderr=errors, text=True)
    if ended.returncode or not ended.stdout.strip():
        return {"failed": f"exit status {ended.returncode}; see {log.name}"}
    return json.loads(ended.stdout.strip().splitlines()[-1])


def place(key: str) -> tuple[Any, ...]:
    """Where a row stands among the others."""
    part, name, *rest = key.split("|")
    names = {"speed": SPEED, "online": ONLINE, "curve": [way for ways in CURVE for way in ways]}[part]
    return (PARTS.index(part), list(names).index(name), *map(int, rest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", type=int, default=100, help="fresh prompts of the learning curve, a picture each")
    parser.add_argument("--epochs", type=int, default=16, help="of 32 pictures, for the online part")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "output" / "bench_training")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    asked = parser.parse_args()
    asked.folder = asked.folder.resolve()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(asked.seeds):
        for part in asked.only:
            if part == "online":
                ddpo_environment(asked.folder)
            for key, command in cells(part, seed, asked):
                rows.measure(asked.folder, key, functools.partial(run, command, asked.folder / "cells.log"))
    found = rows.finished(asked.folder, place)
    (asked.folder / "table.md").write_text(training_report.tables(found))
    training_report.plot(found, asked.folder / "curve.png")
    print(training_report.tables(found))


if __name__ == "__main__":
    main()
