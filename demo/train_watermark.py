"""The recipe of the watermark detector in feedback/rewards/weights. Under an hour on one core.

    python demo/train_watermark.py             # draw, train, save, measure
    python demo/train_watermark.py --measure   # measure the saved weights only
    python demo/train_watermark.py --audit     # train and measure the second detector (training/audit.py) instead

Pictures: scenes of the demo's drawn world without watermarks, pictures made by code, and crops of the photographs that
scikit-image and scikit-learn bring along, where these are installed. Marks: training/overlays.py only; the drawn
world's own watermarks are never trained on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable

import torch

if not __package__:
    import pack  # noqa: F401

from feedback_loop.demo import watermark_help  # noqa: E402
from feedback_loop.demo.watermark_measures import AUDIT_REPORT, REPORT, measure, measure_audit  # noqa: E402
from feedback_loop.demo.watermark_pictures import ROOT, TRAIN_PHOTOS, audit_pools, photographs, pools  # noqa: E402
from feedback_loop.feedback.rewards.watermark import (  # noqa: E402
    AUDITOR_WEIGHTS,
    WEIGHTS,
    Auditor,
    Network,
    load_detector,
)
from feedback_loop.training import audit, watermark  # noqa: E402


def shown(name: str) -> watermark.OnStep:
    """Prints the loss, and keeps what is learned so far in demo/.work under `name`."""
    start = time.time()

    def show(step: int, loss: float, detector: Callable[[], Network]) -> None:
        if step % 50 == 0:
            print(f"step {step} loss {loss:.3f} {time.time() - start:.0f} s", flush=True)
        if step % 250 == 249:
            watermark.save_detector(detector(), ROOT / "demo" / ".work" / f"{name}.safetensors")

    return show


def train_audit(minutes: float | None, steps: int) -> None:
    recipe, start = dataclasses.replace(audit.RECIPE, minutes=minutes, steps=steps), time.time()
    drawn = audit_pools(recipe.seed)
    print(f"drawn in {time.time() - start:.0f} s", flush=True)
    trained = watermark.train_network(Auditor, drawn, recipe, shown("watermark_audit"))
    watermark.save_detector(trained, AUDITOR_WEIGHTS)
    measure_audit({"seconds": round(time.time() - start), "steps": recipe.steps})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the saved weights only")
    parser.add_argument("--audit", action="store_true", help="the second detector instead of the first")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float, help="end the training after this time at the latest")
    parser.add_argument("--resume", action="store_true", help="go on from the saved weights")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    kept = AUDIT_REPORT if chosen.audit else REPORT
    report: dict[str, object] = json.loads(kept.read_text()) if chosen.measure and kept.exists() else {}
    if chosen.audit and chosen.measure:
        return measure_audit(report)
    if chosen.audit:
        return train_audit(chosen.minutes, chosen.steps or audit.RECIPE.steps)
    if not chosen.measure:
        recipe, start = (
            watermark.Recipe(steps=chosen.steps or watermark.Recipe.steps, minutes=chosen.minutes),
            time.time(),
        )
        drawn = pools(recipe.seed)
        print(f"drawn in {time.time() - start:.0f} s", flush=True)
        start_from = load_detector() if chosen.resume else None
        watermark.save_detector(watermark.train(drawn, recipe, shown("watermark"), start_from), WEIGHTS)
        photos = len(photographs(TRAIN_PHOTOS))
        report = {"seconds": round(time.time() - start), "steps": recipe.steps, "photographs": photos}
    measure(load_detector(), report)
    watermark_help.renew()


if __name__ == "__main__":
    main()
