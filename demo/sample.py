"""Samples of the demo model through diffusers, and its measured quality.

python demo/sample.py [pictures]     # writes the table and the grid that demo/README.md shows
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not __package__:
    import pack  # noqa: F401

from feedback_loop.demo import judge as judging  # noqa: E402
from feedback_loop.demo import marked, measure, models, report, world

HERE = Path(__file__).parent


def pipeline() -> Any:
    """The weights as a stock StableDiffusionPipeline."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(models.WEIGHTS, safety_checker=None, torch_dtype=torch.float32)


def sample(pipe: Any, prompts: list[measure.Prompt], cfg: float, steps: int = 20, batch: int = 50) -> torch.Tensor:
    """(N, 3, 64, 64) in 0..1, DDIM with trailing timesteps."""
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for i in range(0, len(prompts), batch):
        block = prompts[i : i + batch]
        noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(p.seed)) for p in block])
        made = pipe(
            [p.text for p in block],
            num_inference_steps=steps,
            guidance_scale=cfg,
            latents=noise,
            output_type="pt",
            height=64,
            width=64,
        )
        pictures.append(made.images.float())
    return torch.cat(pictures)


def any_prompts(n: int, seed: int) -> list[measure.Prompt]:
    """Prompts with every attribute named about as often as in the captions."""
    rng = np.random.default_rng(seed)
    return [measure.Prompt(*world.prompt(rng), int(rng.integers(2**48))) for _ in range(n)]


def quality(row: measure.Row) -> dict[str, float]:
    hits = measure.attribute_hits(row)
    table = {name: float(np.nanmean(column)) for name, column in hits.items()}
    return table | {
        "mean over attributes": measure.attribute_accuracy(row),
        "watermarked": float(row.truth.marked().mean()),
    }


def markdown(tables: dict[str, dict[str, float]]) -> str:
    lines = ["| | " + " | ".join(tables) + " |", "|---" * (len(tables) + 1) + "|"]
    for key in next(iter(tables.values())):
        lines.append(f"| {key} | " + " | ".join(f"{100 * t[key]:.1f} %" for t in tables.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(int(__import__("os").environ.get("OMP_NUM_THREADS", 2)))
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    judge, pipe, prompts = judging.load(), pipeline(), any_prompts(count, 5)
    tables = {}
    for cfg in (1.0, 2.0, 4.0):
        images = sample(pipe, prompts, cfg)
        tables[f"CFG {cfg:g}"] = quality(measure.judged(images, prompts, judge))
        if cfg == 2.0:
            report.grid(images[:64], columns=16, zoom=1).save(HERE / "samples.png")
    scenes = [world.sample_scene(np.random.default_rng((13, i))) for i in range(1000)]
    drawn = torch.stack([torch.from_numpy(world.draw(s).copy()).permute(2, 0, 1) for s in scenes]).float() / 255
    tables_judge = judging.agreement(judging.look(judge, drawn), judging.truth_of_scenes(scenes))
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else "<!-- quality -->\n<!-- /quality -->\n"
    said = f"{count} pictures each, `python demo/sample.py {count}`:\n\n{markdown(tables)}"
    readme.write_text(marked.filled(text, "quality", said + "\n"), encoding="utf-8")
    print(json.dumps(tables | {"judge": {k: round(float(v), 4) for k, v in tables_judge.items()}}, indent=1))


if __name__ == "__main__":
    main()
