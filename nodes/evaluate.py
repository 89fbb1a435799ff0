"""FeedbackEvaluate: did it help? The same prompts and seeds with two models, judged in pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..feedback import evaluation
from ..feedback.evaluation import FEW_PROMPTS, Interval
from .compat import REWARD, io, ui
from .encoder import ClipVisionEncoder, encoder_from
from .examples import encode_prompts
from .learning import AT_ONCE, measured, prepared
from .plots import grid, interval_plot
from .sampling import rollout

if TYPE_CHECKING:
    from ..feedback.rewards.base import Reward

FEW_PAIRS = 20
SHOWN = 48
THUMBNAIL = 8  # pixels a side that stand for a picture's features where no image encoder is at hand


class EvaluationError(ValueError):
    """An evaluation that cannot be made as asked; the message says what to do."""


@dataclass(frozen=True)
class Comparison:
    """What the judge says of B against A over the same prompts and seeds; each interval holds 95 %."""

    pairs: int
    prompts: int
    win_rate: Interval
    gain: Interval
    reward_a: float
    reward_b: float
    diversity_a: float
    diversity_b: float


def split_prompts(text: str) -> list[str]:
    """One prompt a line, each once. Raises EvaluationError when there is none."""
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise EvaluationError("There is no prompt to evaluate on: write at least one into 'prompts', one a line.")
    return prompts


def pairs_of(prompts: Sequence[str], seeds: int, first: int) -> tuple[list[str], list[int]]:
    """Each prompt `seeds` times, and a seed for each picture: all different, so that the pairs are independent."""
    rows = [prompt for prompt in prompts for _ in range(seeds)]
    return rows, [(first + index) % 2**64 for index in range(len(rows))]


def compare(a: Sequence[float], b: Sequence[float], rows: Sequence[str], diversity: Sequence[float]) -> Comparison:
    """Rewards of the same prompts (`rows`) and seeds under A and under B, in the same order.

    With FEW_PROMPTS prompts or more the intervals count prompts and so speak for prompts like these; with fewer they
    could say next to nothing that way, and are about these prompts alone.
    """
    clusters = rows if len(set(rows)) >= FEW_PROMPTS else None
    return Comparison(
        len(rows),
        len(set(rows)),
        evaluation.paired_win_rate(a, b, clusters),
        evaluation.paired_difference(a, b, clusters),
        fmean(a),
        fmean(b),
        *diversity,
    )


def features(images: Tensor, encoder: ClipVisionEncoder | None) -> Tensor:
    """(N, 3, H, W) -> (N, F): the encoder's, or where there is none the pixels of a thumbnail."""
    if encoder is None:
        return torch.nn.functional.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)
    comfy.model_management.load_models_gpu(encoder.patchers())
    with torch.no_grad():
        return torch.cat([encoder(part).float().cpu() for part in images.split(AT_ONCE)])


def verdict(result: Comparison) -> str:
    """The result in plain words, a line for each point."""
    win, gain = result.win_rate, result.gain
    lines = [f"B wins {win.value:.0%} of {result.pairs} pairs (95 % interval {win.low:.0%} to {win.high:.0%})."]
    if win.low <= 0.5 <= win.high:
        lines.append("The interval includes 50 %: this does not show a difference between the models. " + more(result))
    else:
        lines.append(f"The interval is {'above' if win.low > 0.5 else 'below'} 50 %.")
    known = math.isfinite(gain.low) and math.isfinite(gain.high)
    within = f"95 % interval {gain.low:+.4g} to {gain.high:+.4g}" if known else "one pair gives no interval"
    means = f"Mean reward {result.reward_a:.4g} for A and {result.reward_b:.4g} for B"
    lines.append(f"{means}: a difference of {gain.value:+.4g} ({within}).")
    if result.diversity_a > 0:
        share = result.diversity_b / result.diversity_a
        lines.append(
            f"Diversity {result.diversity_a:.4g} for A and {result.diversity_b:.4g} for B ({share:.0%} of A's)."
        )
    return "\n".join(lines + cautions(result))


def more(result: Comparison) -> str:
    """How many pairs would tell, if the rate stayed as it is: the interval shrinks with the root of their number."""
    win = result.win_rate
    off, reach = abs(win.value - 0.5), (win.high - win.low) / 2
    if off < 0.01:
        return "The models look alike to this judge."
    needed = max(math.ceil(result.pairs * (reach / off) ** 2), result.pairs + 1)
    return f"About {needed} pairs would settle a rate like this one."


def cautions(result: Comparison) -> list[str]:
    """What keeps the numbers from saying more."""
    said = []
    if result.pairs < FEW_PAIRS:
        said.append(f"{result.pairs} pairs are few: use more prompts or seeds before you rely on this.")
    if result.prompts < FEW_PROMPTS:
        said.append(
            f"The intervals are about these prompts alone; with {FEW_PROMPTS} or more they speak for others like them."
        )
    return said


def side_by_side(a: Tensor, b: Tensor, rewards: tuple[Sequence[float], Sequence[float]], rows: Sequence[str]) -> Tensor:
    """Rows of A over the same prompts and seeds under B; (N, 3, H, W) each -> IMAGE. At most SHOWN pairs, evenly."""
    count = min(len(rows), SHOWN)
    chosen = [index * len(rows) // count for index in range(count)]
    columns = min(8, count)
    pictures, labels = [], []
    for start in range(0, count, columns):
        block = chosen[start : start + columns]
        for name, images, values in (("A", a, rewards[0]), ("B", b, rewards[1])):
            empty = columns - len(block)
            pictures += [images[i] for i in block] + [torch.ones_like(images[0])] * empty
            labels += [f"{name} {values[i]:.3g} {rows[i]}" for i in block] + [""] * empty
    return grid(torch.stack(pictures).movedim(1, -1), columns, labels)


def figures(
    result: Comparison,
    judge: Reward,
    rows: Sequence[str],
    seeds: Sequence[int],
    rewards: tuple[Sequence[float], Sequence[float]],
) -> str:
    """Every number, and every pair by itself, as JSON for scripts; what is not known is null."""
    each = zip(rows, seeds, *rewards, strict=True)
    pairs = [{"prompt": row, "seed": seed, "reward_a": a, "reward_b": b} for row, seed, a, b in each]
    numbers = {name: _plain(number) for name, number in vars(result).items()}
    return json.dumps({"judge": judge.name, **numbers, "each": pairs}, indent=1, allow_nan=False)


def _plain(number: float | Interval) -> Any:
    if isinstance(number, Interval):
        return {name: _plain(part) for name, part in number._asdict().items()}
    return number if math.isfinite(number) else None


def eye_of(clip_vision: Any | None, judge: Reward) -> ClipVisionEncoder | None:
    """What tells pictures apart: the CLIP_VISION that was connected, else the judge's own encoder."""
    if clip_vision is not None:
        return encoder_from(clip_vision)
    return next((encoder for encoder in judge.encoders if isinstance(encoder, ClipVisionEncoder)), None)


class FeedbackEvaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        kinds = comfy.samplers.KSampler
        return io.Schema(
            node_id="FeedbackEvaluate",
            display_name="Compare two models",
            category="feedback/evaluate",
            search_aliases=["win rate", "A/B test", "benchmark", "before and after", "did it help"],
            description=(
                "Makes pictures of the same prompts and seeds with two models, lets a judge score them in pairs, and "
                "says how often B wins, with a 95 % interval."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model_a", tooltip="The model to compare with, such as the plain checkpoint."),
                io.Model.Input("model_b", tooltip="The model in question: with a LoRA or with guidance."),
                io.Clip.Input("clip", tooltip="The text encoder of both models."),
                io.Vae.Input("vae", tooltip="The VAE of both models."),
                REWARD.Input(
                    "judge",
                    tooltip="Who scores the pictures. Take another reward than the one that B was trained or guided "
                    "with: a model can learn to please its own reward without getting better.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    tooltip="One prompt a line. Take prompts that were not used for training.",
                ),
                io.String.Input("negative", default="", multiline=True, tooltip="Negative prompt of every picture."),
                io.Int.Input("seeds", default=4, min=1, max=256, tooltip="Pictures for each prompt and model."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Seed of the first picture; every further picture takes the next one, in both models.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps."),
                io.Float.Input(
                    "cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Classifier-free guidance scale."
                ),
                io.Combo.Input("sampler_name", options=kinds.SAMPLERS, default="euler", tooltip="Sampling algorithm."),
                io.Combo.Input("scheduler", options=kinds.SCHEDULERS, default="normal", tooltip="Noise schedule."),
                io.Int.Input(
                    "width", default=512, min=16, max=8192, step=8, tooltip="Width of the pictures in pixels."
                ),
                io.Int.Input(
                    "height", default=512, min=16, max=8192, step=8, tooltip="Height of the pictures in pixels."
                ),
                io.ClipVision.Input(
                    "encoder",
                    optional=True,
                    tooltip="Measures how different the pictures are from each other. Without it the judge's own "
                    "encoder does, and where it has none, the pixels of small copies.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=8,
                    min=1,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip="Pictures sampled at once, of whatever prompts; it changes the speed, not the pictures.",
                ),
            ],
            outputs=[
                io.Image.Output("grid", tooltip="A above B, each picture with its reward and prompt."),
                io.Image.Output("plot", tooltip="The win rate with its interval."),
                io.String.Output("report", tooltip="The result in plain words."),
                io.Float.Output("win_rate", tooltip="Share of the pairs that B wins; a tie counts half."),
                io.Float.Output("gain", tooltip="Mean reward of B less that of A."),
                io.String.Output("figures", tooltip="All numbers with their intervals, as JSON."),
            ],
        )

    @classmethod
    def execute(
        cls, model_a, model_b, clip, vae, judge, prompts, negative, seeds, seed, steps, cfg, sampler_name, scheduler,
        width, height, encoder=None, batch_size=8,
    ) -> io.NodeOutput:  # fmt: skip
        prepared(judge)
        eye = eye_of(encoder, judge)
        rows, own_seeds = pairs_of(split_prompts(prompts), seeds, seed)
        conds = encode_prompts(clip, [*rows, negative])
        how = (vae, own_seeds, steps, cfg, sampler_name, scheduler, width, height, batch_size)
        a, b = (rollout(m, [conds[r] for r in rows], conds[negative], *how).images for m in (model_a, model_b))
        rewards = measured(judge, a, rows), measured(judge, b, rows)
        diversity = [evaluation.diversity(features(images, eye), rows) for images in (a, b)]
        result = compare(*rewards, rows, diversity)
        shown = side_by_side(a, b, rewards, rows)
        plot = interval_plot({"B wins": result.win_rate}, "Share of pairs that B wins", 0.5, limits=(0, 1))
        report = verdict(result)
        numbers = figures(result, judge, rows, own_seeds, rewards)
        preview = ui.PreviewImage(shown, cls=cls).as_dict() | {"text": (report,)}
        return io.NodeOutput(
            shown, plot, report, result.win_rate.value, result.gain.value, numbers, ui=preview,
        )  # fmt: skip


NODES: list[type[io.ComfyNode]] = [FeedbackEvaluate]
