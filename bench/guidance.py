"""Ways to steer by a reward, side by side on the demo model: what they reach, what they cost, what they spoil.

    python bench/guidance.py [--pictures 64] [--seeds 3] [--folder output/bench_guidance] [--only NAME ...]

Needs ComfyUI (COMFYUI_PATH). Every row is run on the same prompts and starting noise. `watermarked` and `taste` are the
independent judge's and the scripted rater's true taste, which no method sees; `evaluations` are of the denoiser,
relative to the plain run; `time` is relative to the plain run of the same seed, one thread. What is finished is kept in
the folder and not run again. Writes report.json, table.md and pareto.png there.

Baselines, as published: MPGD (arXiv:2311.16424), a constant step along the gradient at the clean estimate; DPS
(2209.14687), a constant step along the gradient through the denoiser; FreeDoM (2303.09833), the same with a step
proportional to the noise prediction's length; LGD-MC (2303.15483), its gradient averaged over eight samples around the
estimate; FK steering (2501.06848) with lambda 10, undamped; SVDD (2408.08252); best of N. Constant steps are taken at
three sizes, a factor of 4 apart.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "demo"), os.environ.get("COMFYUI_PATH") or str(ROOT / ".cache" / "ComfyUI")]
import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import pack  # noqa: E402, F401

from feedback_loop.demo import judge as judging  # noqa: E402
from feedback_loop.demo import loop, measure, rater  # noqa: E402
from feedback_loop.feedback.records import Generation, RatedImage  # noqa: E402
from feedback_loop.feedback.rewards.base import Reward  # noqa: E402
from feedback_loop.feedback.rewards.watermark import WatermarkPenalty  # noqa: E402
from feedback_loop.guidance.gradient import gradient, rms  # noqa: E402
from feedback_loop.nodes import demo, learning, sampling  # noqa: E402
from feedback_loop.nodes.decoder import decoder_of  # noqa: E402
from feedback_loop.nodes.denoiser import gradients, process_of_sampling  # noqa: E402
from feedback_loop.nodes.encoder import encoder_from  # noqa: E402
from feedback_loop.nodes.guidance import FeedbackRewardGuidance  # noqa: E402
from feedback_loop.nodes.jacobian import transport_of  # noqa: E402
from feedback_loop.nodes.kept_noise import KeptNoise  # noqa: E402
from feedback_loop.nodes.pull import Pull  # noqa: E402
from feedback_loop.nodes.search import FeedbackBestOfN  # noqa: E402
from feedback_loop.nodes.steering import FeedbackRewardSteering  # noqa: E402
from feedback_loop.training.judgements import judgements  # noqa: E402
from feedback_loop.training.taste import fit_taste  # noqa: E402

STEPS, CFG, SIZE, BATCH = 20, 2.0, 64, 16
NEGATIVE = "watermark"
RATED = 200
TARGETS = ("watermark", "taste")


@dataclass
class Bench:
    """The demo model, the two rewards, and the prompts of one seed. `rows` counts what the denoiser is asked."""

    model: Any
    clip: Any
    vae: Any
    vision: Any
    judge: judging.Judge
    rewards: dict[str, Reward]
    prompts: list[measure.Prompt]
    rows: int = 0

    def encoded(self, texts: list[str]) -> Any:
        return sampling.stacked([self.clip.encode_from_tokens_scheduled(self.clip.tokenize(t)) for t in texts])

    def counted(self, model: Any) -> Any:
        model = model.clone()

        def count(apply: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
            self.rows += len(given["input"])
            return apply(given["input"], given["timestep"], **given["c"])

        model.set_model_unet_function_wrapper(count)
        return model

    def noise(self, prompts: list[measure.Prompt]) -> Tensor:
        empty = torch.zeros(1, 4, SIZE // 8, SIZE // 8)
        return torch.cat([comfy.sample.prepare_noise(empty, prompt.seed) for prompt in prompts])

    def guider(self, model: Any, prompts: list[measure.Prompt], cfg: float, negative: str) -> Any:
        guider = comfy.samplers.CFGGuider(self.counted(model))
        guider.set_conds(self.encoded([p.text for p in prompts]), self.encoded([negative]))
        guider.set_cfg(cfg)
        return guider

    def sigmas(self) -> Tensor:
        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "sgm_uniform", STEPS)


Method = Callable[[Bench, str, list[measure.Prompt]], Tensor]
"""Bench, target, prompts -> latents, one for each prompt."""


def sampled(
    bench: Bench,
    prompts: list[measure.Prompt],
    model: Any,
    sampler: Any = None,
    cfg: float = CFG,
    negative: str = "",
    noise: Tensor | None = None,
) -> Tensor:
    noise = bench.noise(prompts) if noise is None else noise
    sampler = sampler or comfy.samplers.sampler_object("euler")
    guider = bench.guider(model, prompts, cfg, negative)
    return guider.sample(
        noise, torch.zeros_like(noise), sampler, bench.sigmas(), disable_pbar=True, seed=prompts[0].seed
    )


def plain(cfg: float = CFG, negative: str = "", sampler: str = "euler") -> Method:
    return lambda bench, target, prompts: sampled(
        bench, prompts, bench.model, comfy.samplers.sampler_object(sampler), cfg, negative
    )


def ours(strength: float = 1.0, **options: Any) -> Method:
    def run(bench: Bench, target: str, prompts: list[measure.Prompt]) -> Tensor:
        guided = FeedbackRewardGuidance.execute(bench.model, bench.rewards[target], bench.vae, strength, **options)
        return sampled(bench, prompts, guided.args[0])

    return run


def hooked(step: Callable[[dict[str, Any], Pull, Any], Tensor]) -> Method:
    """A baseline as a post-CFG function: step(args, pull, process) is added to the clean estimate."""

    def run(bench: Bench, target: str, prompts: list[measure.Prompt]) -> Tensor:
        pull = Pull(bench.rewards[target], decoder_of(bench.vae, bench.model), 1.0)
        pull.decoder.load((BATCH, 4, SIZE // 8, SIZE // 8))
        model = bench.model.clone()

        def hook(args: dict[str, Any]) -> Tensor:
            process = process_of_sampling(args["model"].model_sampling)
            with gradients():
                moved = step(args, pull, process)
            return args["denoised"] + torch.nan_to_num(moved.detach()).to(args["denoised"])

        model.set_model_sampler_post_cfg_function(hook)
        return sampled(bench, prompts, model)

    return run


def slope(pull: Pull, denoised: Tensor) -> Tensor:
    return gradient(lambda x: pull.score(x, 1.0), denoised.clone())


def mpgd(size: float) -> Method:
    return hooked(lambda args, pull, process: size * slope(pull, args["denoised"]))


def through(args: dict[str, Any], process: Any, wish: Tensor) -> Tensor:
    """s^2/a J^T wish: what DPS and its kin do to the clean estimate when they move x by the gradient through it."""
    carry = transport_of("full", args, process)
    assert carry is not None
    return carry(wish)


def dps(size: float) -> Method:
    return hooked(lambda args, pull, process: size * through(args, process, slope(pull, args["denoised"])))


def freedom(size: float) -> Method:
    """The step in x is size * |predicted noise| / |gradient| times the gradient: its length follows the noise."""

    def step(args: dict[str, Any], pull: Pull, process: Any) -> Tensor:
        moved = through(args, process, slope(pull, args["denoised"]))
        sigma = args["sigma"].clone().reshape(-1, 1, 1, 1)
        predicted = (args["input"].clone() - args["denoised"].clone()) / sigma
        return size * sigma * rms(predicted) * moved / rms(moved).clamp(min=1e-12)

    return hooked(step)


def lgd_mc(size: float, samples: int = 8) -> Method:
    def step(args: dict[str, Any], pull: Pull, process: Any) -> Tensor:
        sigma = args["sigma"].clone().reshape(-1, 1, 1, 1)
        spread = sigma / (1 + sigma**2).sqrt()
        generator = torch.Generator().manual_seed(0)
        clean = args["denoised"].clone()
        around = [clean + spread * torch.randn(clean.shape, generator=generator) for _ in range(samples)]
        return size * through(args, process, torch.stack([slope(pull, one) for one in around]).mean(0))

    return hooked(step)


def particles(**options: Any) -> Method:
    def run(bench: Bench, target: str, prompts: list[measure.Prompt]) -> Tensor:
        base = comfy.samplers.sampler_object("euler_ancestral")
        sampler = FeedbackRewardSteering.execute(base, bench.rewards[target], bench.vae, **options).args[0]
        return sampled(bench, prompts, bench.model, sampler)

    return run


def twisted(guidance: float, **options: Any) -> Method:
    def run(bench: Bench, target: str, prompts: list[measure.Prompt]) -> Tensor:
        base = comfy.samplers.sampler_object("euler_ancestral")
        sampler = FeedbackRewardSteering.execute(base, bench.rewards[target], bench.vae, **options).args[0]
        guided = FeedbackRewardGuidance.execute(bench.model, bench.rewards[target], bench.vae, guidance).args[0]
        return sampled(bench, prompts, guided, sampler)

    return run


def best_of(count: int, halving: bool) -> Method:
    def run(bench: Bench, target: str, prompts: list[measure.Prompt]) -> Tensor:
        guider = bench.guider(bench.model, prompts, CFG, "")
        noise = KeptNoise(prompts[0].seed, bench.noise(prompts))
        latent = {"samples": torch.zeros(len(prompts), 4, SIZE // 8, SIZE // 8)}
        sampler = comfy.samplers.sampler_object("euler")
        found = FeedbackBestOfN.execute(
            noise, guider, sampler, bench.sigmas(), latent, bench.rewards[target], bench.vae, count, halving
        )
        return found.args[0]["samples"]

    return run


METHODS: dict[str, Method] = {
    "plain": plain(),
    "plain, ancestral": plain(sampler="euler_ancestral"),
    "negative prompt at CFG 2": plain(negative=NEGATIVE),
    "negative prompt at CFG 3": plain(3.0, NEGATIVE),
    "best of 2": best_of(2, False),
    "best of 4": best_of(4, False),
    "best of 8": best_of(8, False),
    **{f"MPGD, {size:g}": mpgd(size) for size in (0.05, 0.2, 0.8)},
    **{f"DPS, {size:g}": dps(size) for size in (0.25, 1.0, 4.0)},
    **{f"FreeDoM, {size:g}": freedom(size) for size in (0.1, 0.4)},
    "LGD-MC, 1": lgd_mc(1.0),
    "FK steering, published": particles(particles=4, strength=10.0, method="max", every=4, damping=0.0),
    "SVDD": particles(particles=4, strength=10.0, method="svdd"),
    "ours: trust region, .5": ours(0.5),
    "ours: trust region (default)": ours(1.0),
    "ours: trust region, full decoder": ours(1.0, decoder="full"),
    "ours: trust region, difference": ours(1.0, gradient="difference"),
    "ours: particles": particles(particles=4, strength=10.0),
    "ours: twisted particles": twisted(0.5, particles=4, strength=10.0),
    "ours: halving search of 8": best_of(8, True),
}


def fitted_taste(bench: Bench) -> Reward:
    """A taste from RATED scripted stars on plain pictures of other prompts, as the demo learns it."""
    prompts = loop.prompts(RATED, seed=1)
    latents = torch.cat([sampled(bench, prompts[i : i + BATCH], bench.model) for i in range(0, RATED, BATCH)])
    images = sampling.decode(bench.vae, latents).clone()
    truth, rng = judging.look(bench.judge, images), np.random.default_rng(2026)
    stars = rater.stars(rater.utility(truth, [p.words for p in prompts]), rng)
    encoder, now = encoder_from(bench.vision), datetime.now(timezone.utc)
    pixels = (images.permute(0, 2, 3, 1) * 255).byte().numpy()
    vectors = dict(zip(map(str, range(RATED)), learning.features(encoder, pixels), strict=True))
    rated = [
        RatedImage(str(i), str(i), p.text, (s - 1) / 4, float(s), (1.0, 5.0), "scripted", "overall", now, Generation())
        for i, (p, s) in enumerate(zip(prompts, stars, strict=True))
    ]
    with torch.inference_mode(False):
        return fit_taste(judgements(rated, [], vectors), encoder, None, 1.0, lambda done: None)[0]


def run(bench: Bench, name: str, target: str, base: float | None) -> dict[str, Any]:
    bench.rows, start, latents = 0, time.perf_counter(), []
    for i in range(0, len(bench.prompts), BATCH):
        latents.append(METHODS[name](bench, target, bench.prompts[i : i + BATCH]).clone())
    seconds = time.perf_counter() - start
    images = sampling.decode(bench.vae, torch.cat(latents)).clone()
    row = measure.judged(images, bench.prompts, bench.judge)
    return {
        "watermarked": float(row.truth.marked().mean()),
        "taste": float(row.numbers.taste.mean()),
        "attributes": measure.attribute_accuracy(row),
        "diversity": row.numbers.diversity,
        "evaluations": bench.rows / (2 * STEPS * len(bench.prompts)),
        "seconds": seconds,
        "time": 1.0 if base is None else seconds / base,
    }


def medians(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Of each row and measure: median, lowest and highest over seeds."""
    rows: dict[str, dict[str, list[float]]] = {}
    for key, values in found.items():
        name = key.rsplit("|", 1)[0]
        for measure_name, value in values.items():
            rows.setdefault(name, {}).setdefault(measure_name, []).append(value)
    return {
        name: {k: [float(np.median(v)), min(v), max(v)] for k, v in measures.items()} for name, measures in rows.items()
    }


SHOWN = ("watermarked", "taste", "attributes", "diversity", "evaluations", "time")


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| steered by | way | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 2) + "|"]
    for name, values in rows.items():
        target, method = name.split("|")
        cells = [f"{values[k][0]:.3g} ({values[k][1]:.3g} .. {values[k][2]:.3g})" for k in SHOWN]
        lines.append(f"| {target} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: dict[str, dict[str, list[float]]], path: Path) -> None:
    """What is reached against denoiser evaluations and against time; ours are filled."""
    from PIL import Image, ImageDraw, ImageFont

    panel, edge = (620, 420), 60
    image = Image.new("RGB", (2 * panel[0], 2 * panel[1]), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    for down, (target, aim) in enumerate((("watermark", "watermarked"), ("taste", "taste"))):
        for across, cost in enumerate(("evaluations", "time")):
            left, top = across * panel[0], down * panel[1]
            own = {n.split("|")[1]: v for n, v in rows.items() if n.startswith(target)}
            xs, ys = ([v[k][0] for v in own.values()] for k in (cost, aim))
            low, high, most = min(ys), max(ys), max(xs)
            draw.text((left + edge, top + 8), f"{aim}, steered by {target}, against {cost}", "black", font)
            draw.rectangle((left + edge, top + 30, left + panel[0] - 20, top + panel[1] - 30), outline="gray")
            for (name, _), x, y in zip(own.items(), xs, ys, strict=True):
                px = left + edge + x / most * (panel[0] - edge - 60)
                py = top + panel[1] - 40 - (y - low) / max(high - low, 1e-9) * (panel[1] - 90)
                mine = name.startswith("ours")
                draw.ellipse((px - 4, py - 4, px + 4, py + 4), fill="#2f6fde" if mine else None, outline="#2f6fde")
                draw.text((px + 6, py - 6), name.removeprefix("ours: "), "black", font)
            for y in (low, high):
                py = top + panel[1] - 40 - (y - low) / max(high - low, 1e-9) * (panel[1] - 90)
                draw.text((left + 6, py - 6), f"{y:.2g}", "black", font)
    image.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "output" / "bench_guidance")
    parser.add_argument("--only", nargs="*", choices=list(METHODS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    kept = asked.folder / "report.json"
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    with torch.inference_mode():
        model, clip, vae, vision = demo.load_demo_model()
        bench = Bench(model, clip, vae, vision, judging.load(), {"watermark": WatermarkPenalty()}, [])
        bench.rewards["taste"] = fitted_taste(bench)
        for seed in range(asked.seeds):
            bench.prompts = loop.prompts(asked.pictures, seed=100 + seed)
            for name in asked.only or METHODS:
                for target in TARGETS:
                    key = f"{target}|{name}|{seed}"
                    if key in found or (target == "taste" and name.startswith("negative")):
                        continue
                    base = found.get(f"watermark|plain|{seed}", {}).get("seconds")
                    found[key] = run(bench, name, target, base)
                    kept.write_text(json.dumps(found, indent=1) + "\n")
                    print(key, {k: round(v, 3) for k, v in found[key].items()}, flush=True)
    rows = medians(found)
    (asked.folder / "table.md").write_text(table(rows))
    plot(rows, asked.folder / "pareto.png")
    print(table(rows))


if __name__ == "__main__":
    main()
