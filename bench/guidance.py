"""Ways to steer by a reward, side by side on the demo model: what they reach, what they cost, what they spoil.

    python bench/guidance.py [--pictures 64] [--seeds 3] [--folder output/bench_guidance] [--only NAME ...]
                             [--target watermark|taste] [--publish]

Needs ComfyUI (COMFYUI_PATH). Every row is run on the same prompts and starting noise. `watermarked` and `taste` are the
independent judge's and the scripted rater's true taste, which no method sees; `evaluations` are of the denoiser,
relative to the plain run; `time` is relative to the plain run of the same seed: CPU seconds of one thread,
which is the wall time of a machine with nothing else to do, and the same on a busy one. What is finished is kept in the
folder and not run again; started twice, the two share the rows between them, so that two cores take half the time.
Writes report.json, table.md, dominated.md and pareto.png there, and with --publish what docs/guidance_bench.md shows.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import all_on_cpu  # (before ComfyUI)
import guidance_report
import rows
import taste
import torch
from guidance_ways import BATCH, METHODS, STEPS, Bench

from feedback_loop.demo import loop, measure
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.feedback.rewards.watermark import WatermarkPenalty
from feedback_loop.nodes import sampling
from feedback_loop.nodes.encoder import encoder_from

RATED = 200
TARGETS = ("watermark", "taste")


def fitted_taste(bench: Bench) -> Reward:
    """A taste from RATED scripted stars on plain pictures of other prompts, as the demo learns it."""
    encoder = encoder_from(bench.vision)
    return taste.fitted(encoder, taste.made(bench, encoder, loop.prompts(RATED, seed=1), per_prompt=1), seed=2026)


def run(bench: Bench, name: str, target: str) -> dict[str, Any]:
    bench.rows, start, latents = 0, time.process_time(), []
    for i in range(0, len(bench.prompts), BATCH):
        latents.append(METHODS[name](bench, target, bench.prompts[i : i + BATCH]).clone())
    seconds = time.process_time() - start
    images = sampling.decode(bench.vae, torch.cat(latents)).clone()
    row = measure.judged(images, bench.prompts, bench.judge)
    return {
        "watermarked": float(row.truth.marked().mean()),
        "taste": float(row.numbers.taste.mean()),
        "attributes": measure.attribute_accuracy(row),
        "diversity": row.numbers.diversity,
        "evaluations": bench.rows / (2 * STEPS * len(bench.prompts)),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=all_on_cpu.ROOT / "output" / "bench_guidance")
    parser.add_argument("--only", nargs="*", choices=list(METHODS))
    parser.add_argument("--target", choices=TARGETS, help="steer by this reward only")
    parser.add_argument("--publish", action="store_true", help="run nothing; write what is finished into the docs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not asked.publish:
        with torch.inference_mode():
            measure_all(asked)
    found = rows.finished(asked.folder, place)
    summary = guidance_report.medians(found)
    (asked.folder / "table.md").write_text(guidance_report.table(summary))
    (asked.folder / "dominated.md").write_text(guidance_report.verdict(summary))
    guidance_report.plot(summary, asked.folder / "pareto.png")
    if asked.publish:
        guidance_report.publish(found, all_on_cpu.ROOT / "docs")
    print(guidance_report.table(summary), guidance_report.verdict(summary), sep="\n")


def place(key: str) -> tuple[int, int, int]:
    """Where a row stands among the others."""
    target, name, seed = key.split("|")
    return TARGETS.index(target), list(METHODS).index(name), int(seed)


def measure_all(asked: argparse.Namespace) -> None:
    """Runs what is missing in the folder. A row that another process has begun is left to it."""
    bench = Bench.of_demo({"watermark": WatermarkPenalty()})
    targets = [asked.target] if asked.target else TARGETS
    if "taste" in targets:
        bench.rewards["taste"] = fitted_taste(bench)
    for seed in range(asked.seeds):
        bench.prompts = loop.prompts(asked.pictures, seed=100 + seed)
        for name in asked.only or METHODS:
            for target in targets:
                key = f"{target}|{name}|{seed}"
                if not (target == "taste" and name.startswith("negative")):
                    rows.measure(asked.folder, key, functools.partial(run, bench, name, target))


if __name__ == "__main__":
    main()
