"""The closed loop on the demo model, through a running ComfyUI's own HTTP API.

    python demo/loop.py --server http://127.0.0.1:8188 --out output/demo [--full]

Generate, rate (by the scripted rater of rater.py), learn the taste, guide by it, train a LoRA on the same ratings, and
measure every step with the independent judge. Writes report.json, report.html and the grids to --out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not __package__:
    import pack  # noqa: F401

from feedback_loop.demo import judge as judging  # noqa: E402
from feedback_loop.demo import measure, rater, report, world  # noqa: E402
from feedback_loop.demo.client import Graph, Link, Server  # noqa: E402

PER_PROMPT = 4
RATED_PROMPTS = 50  # x 4 = 200 pictures with stars
FRESH_PAIRS = 500
LORA: dict[str, Any] = {
    "objective": "SFT",
    "objective.tau": 1.0,
    "pictures": "and more, scored by a reward",
    "pictures.count": 400,
    "pictures.sampling_steps": 20,
    "pictures.cfg": 2.0,
    "pictures.sampler_name": "euler",
    "pictures.scheduler": "sgm_uniform",
    "steps": 200,
    "learning_rate": 1e-3,
    "batch": 32,
    "rank": 16,
    "seed": 0,
    "layers": "all",
}
GUIDANCE = {"start_percent": 0.0, "end_percent": 1.0, "decoder": "auto"}
TASTE_STRENGTH = 1.0
PENALTY_STRENGTH = 1.0
SAMPLING = {"steps": 20, "cfg": 2.0, "sampler_name": "euler", "scheduler": "sgm_uniform", "denoise": 1.0}
TASTE_WORDS = {"size": 0.25, "place": 0.25, "count": 0.25, "texture": 0.25}  # how often prompts say these
OTHER_WORDS = 0.85


def prompts(n: int, seed: int) -> list[measure.Prompt]:
    """Prompts that some scene could satisfy, and a noise seed for each."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        scene = world.sample_scene(rng, watermark_rate=0.0)
        words = {k: w for k, w in world.attributes(scene).items() if rng.random() < TASTE_WORDS.get(k, OTHER_WORDS)}
        made.append(measure.Prompt(world.phrase(words, scene, rng), words, int(rng.integers(2**48))))
    return made


class Loop:
    """All stages, each a graph that the server runs. `run` names the collection, the reward and the LoRA."""

    def __init__(self, server: Server, run: str, rated: int, fresh: int) -> None:
        self.server, self.run = server, run
        self.judge = judging.load()
        self.rng = np.random.default_rng(2026)
        self.rated = prompts(rated, seed=1)
        self.fresh = prompts(fresh, seed=2)
        self.seconds: dict[str, float] = {}
        self.learned: dict[str, np.ndarray] = {}  # what the learned reward says of each row: never a judge

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
        print(f"{name:>22}  {self.seconds[name]:6.1f} s", flush=True)

    # --- graphs ------------------------------------------------------------------------------------------------------

    def sample(
        self, graph: Graph, model: Link, clip: Link, vae: Link, prompt: measure.Prompt, negative: str = ""
    ) -> Link:
        """Text -> KSampler -> VAEDecode, all stock nodes; the link to the pictures."""
        positive = graph.add("CLIPTextEncode", clip=clip, text=prompt.text)
        against = graph.add("CLIPTextEncode", clip=clip, text=negative)
        latent = graph.add("EmptyLatentImage", width=world.SIZE, height=world.SIZE, batch_size=PER_PROMPT)
        sampled = graph.add(
            "KSampler",
            model=model,
            positive=[positive, 0],
            negative=[against, 0],
            latent_image=[latent, 0],
            seed=prompt.seed,
            **SAMPLING,
        )
        return [graph.add("VAEDecode", samples=[sampled, 0], vae=vae), 0]

    def generate_to_rate(self) -> list[str]:
        graph = Graph()
        demo = graph.add("FeedbackDemoModel")
        for prompt in self.rated:
            pictures = self.sample(graph, [demo, 0], [demo, 1], [demo, 2], prompt)
            graph.add("FeedbackCapture", images=pictures, collection=self.run)
        self.server.run(graph)
        return [item["id"] for item in self.listed()]

    def listed(self) -> list[dict[str, Any]]:
        items, cursor = [], ""
        while True:
            page = self.server.call("GET", f"/feedback_loop/v1/images?collection={self.run}&limit=100" + cursor)
            items += page["items"]
            if page["next"] is None:
                return items
            cursor = f"&cursor={page['next']}"

    def rate(self) -> int:
        """Stars for every captured picture, by what is truly in it where its prompt left it open."""
        words = {p.text: p.words for p in self.rated}
        items = self.listed()
        images = torch.stack([self.server.captured(item["id"]) for item in items])
        utility = rater.utility(judging.look(self.judge, images), [words[item["prompt"]] for item in items])
        for item, stars in zip(items, rater.stars(utility, self.rng), strict=True):
            self.server.rate(item["id"], int(stars), rater="scripted")
        return len(items)

    def dataset(self) -> dict[str, Any]:
        return {"collection": self.run, "raters": "scripted", "axis": "overall", "min_ratings": 1}

    def learn(self) -> str:
        """Fits the taste and keeps it in models/feedback_rewards; what the node says of it."""
        graph = Graph()
        demo = graph.add("FeedbackDemoModel")
        data = graph.add("FeedbackDataset", **self.dataset())
        taste = graph.add("FeedbackTrainReward", feedback=[data, 0], clip_vision=[demo, 3], caution=1.0)
        graph.add("FeedbackSaveReward", reward=[taste, 0], name=self.run)
        said = graph.add("PreviewAny", source=[taste, 1])
        return self.server.run(graph)[said]["text"][0]

    def load_taste(self, graph: Graph, demo: str) -> Link:
        return [graph.add("FeedbackLoadReward", name=self.run + ".safetensors", clip_vision=[demo, 3]), 0]

    def row(self, name: str, model_of: Callable[[Graph, str], Link], negative: str = "") -> measure.Row:
        """One row: the fresh prompts and seeds with the model that `model_of` wires up, and their learned scores."""
        graph = Graph()
        demo = graph.add("FeedbackDemoModel")
        model, taste = model_of(graph, demo), self.load_taste(graph, demo)
        saved, scored = [], []
        for prompt in self.fresh:
            pictures = self.sample(graph, model, [demo, 1], [demo, 2], prompt, negative)
            saved.append(graph.add("SaveImage", images=pictures, filename_prefix=f"{self.run}/{name}"))
            scored.append(graph.add("FeedbackScoreImages", images=pictures, reward=taste))
        with self.stage(name):
            outputs = self.server.run(graph)
        images = torch.cat([self.server.pictures(outputs[node]) for node in saved])
        self.learned[name] = np.array([score for node in scored for score in outputs[node]["scores"]])
        return measure.judged(images, self.fresh, self.judge)

    def guided(self, graph: Graph, demo: str, model: Link, reward: Link, strength: float) -> Link:
        parts = {"model": model, "reward": reward, "vae": [demo, 2], "strength": strength}
        return [graph.add("FeedbackRewardGuidance", **parts, **GUIDANCE), 0]

    def with_penalty(self, graph: Graph, demo: str) -> Link:
        penalty = graph.add("FeedbackWatermarkPenalty", margin=3.0)
        return self.guided(graph, demo, [demo, 0], [penalty, 0], PENALTY_STRENGTH)

    def with_taste(self, graph: Graph, demo: str) -> Link:
        return self.guided(graph, demo, [demo, 0], self.load_taste(graph, demo), TASTE_STRENGTH)

    def with_lora(self, graph: Graph, demo: str) -> Link:
        return [graph.add("LoraLoaderModelOnly", model=[demo, 0], lora_name=self.lora, strength_model=1.0), 0]

    def with_both(self, graph: Graph, demo: str) -> Link:
        return self.guided(graph, demo, self.with_lora(graph, demo), self.load_taste(graph, demo), TASTE_STRENGTH)

    def train_lora(self) -> list[float]:
        """The LoRA from the same stars, with the reward they taught scoring more pictures; returns its losses."""
        graph = Graph()
        demo = graph.add("FeedbackDemoModel")
        data = graph.add("FeedbackDataset", **self.dataset())
        trained = graph.add(
            "FeedbackTrainLora",
            model=[demo, 0],
            feedback=[data, 0],
            clip=[demo, 1],
            vae=[demo, 2],
            name=self.run,
            **LORA,
            **{"pictures.reward": self.load_taste(graph, demo)},
        )
        losses = graph.add("PreviewAny", source=[trained, 1])
        outputs = self.server.run(graph)
        self.lora = outputs[trained]["lora"][0]
        return json.loads(outputs[losses]["text"][0])["loss"]

    # --- the loop ----------------------------------------------------------------------------------------------------

    def close(self) -> tuple[dict[str, Any], dict[str, measure.Row], list[float]]:
        """Every stage in order; (report, rows, losses)."""
        with self.stage("generate_to_rate"):
            self.generate_to_rate()
        with self.stage("rate"):
            rated = self.rate()
        with self.stage("learn"):
            said = self.learn()
        rows = {"plain": self.row("plain", lambda graph, demo: [demo, 0])}
        taste = self.taste_report(rows["plain"])
        rows["watermark_penalty"] = self.row("watermark_penalty", self.with_penalty)
        rows["negative_prompt"] = self.row("negative_prompt", lambda graph, demo: [demo, 0], negative="watermark")
        rows["taste_guidance"] = self.row("taste_guidance", self.with_taste)
        with self.stage("train_lora"):
            losses = self.train_lora()
        rows["lora"] = self.row("lora", self.with_lora)
        rows["both"] = self.row("both", self.with_both)
        report = {name: measure.summary(row, rows["plain"]) for name, row in rows.items()}
        for name, scores in self.learned.items():
            report[name]["learned_reward_mean"] = float(scores.mean())
        return report | {"rated": rated, "taste": taste, "node_report": said, "seconds": self.seconds}, rows, losses

    def taste_report(self, row: measure.Row) -> dict[str, Any]:
        """How well the learned reward ranks fresh pairs, beside the rater's agreement with himself."""
        utility, rng = row.taste(), np.random.default_rng(77)
        accuracy, interval = measure.pair_accuracy(self.learned["plain"], utility, row.per_prompt, FRESH_PAIRS, rng)
        order = rng.permutation(len(utility))
        agreement = rater.self_agreement(utility, utility[order], rng, repeats=1000)
        return {
            "pairs": FRESH_PAIRS,
            "held_out_accuracy": accuracy,
            "held_out_interval": interval,
            "self_agreement": agreement,
            "bound": measure.bound(agreement),
        }


def write_report(out: Path, found: dict[str, Any], rows: dict[str, measure.Row], losses: list[float]) -> Path:
    """report.json, report.html and the grids; the path of the page."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return report.write(out, found, {name: report.grid(row.images[:48]) for name, row in rows.items()}, losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="URL of a running ComfyUI with the pack")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--full", action="store_true", help="400 pictures a row instead of 100")
    arguments = parser.parse_args()
    run = time.strftime("demo_%Y%m%d_%H%M%S")
    loop = Loop(Server(arguments.server), run, rated=RATED_PROMPTS, fresh=100 if arguments.full else 25)
    found, rows, losses = loop.close()
    page = write_report(arguments.out, found, rows, losses)
    print(report.text_table(found))
    print(report.paragraph(found))
    print(f"Report: {page}")


if __name__ == "__main__":
    main()
