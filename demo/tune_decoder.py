"""The second stage of the small decoder's recipe: half an hour on one core, after demo/train_decoder.py.

    python demo/tune_decoder.py [--minutes 9]

Needs ComfyUI (COMFYUI_PATH). Guidance never decodes clean latents of drawn pictures, as the first stage does, but what
the model expects of a run that is not finished; and the autoencoder decides what a mark looks like there. So this stage
learns from the autoencoder's own decoding, on estimates of every step of plain runs and on noised latents, and is held
to what the watermark detector's layers see in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import all_on_cpu  # noqa: E402, F401  (before ComfyUI)
import comfy.sample  # noqa: E402
import numpy as np  # noqa: E402

from feedback_loop.demo import loop, measure, world  # noqa: E402
from feedback_loop.demo.train_decoder import NOISE, WEIGHTS, descend, loss_of  # noqa: E402
from feedback_loop.diffusion import small_decoder  # noqa: E402
from feedback_loop.feedback.rewards.watermark import Detector, load_detector, log_odds  # noqa: E402
from feedback_loop.nodes import demo, sampling  # noqa: E402

DRAWN, RUNS, AT_ONCE, HELD_OUT = 5000, 480, 48, 400
RATE, SEEN = 1e-3, 0.05  # SEEN: weight of the detector's layers beside pixels and edges


def noised_latents(model: Any, vae: Any) -> Tensor:
    """(DRAWN, 4, 8, 8) in model space, of drawn pictures, half of them with a mark."""
    rng = np.random.default_rng(31)
    scenes = (world.sample_scene(rng, watermark_rate=0.5) for _ in range(DRAWN))
    pictures = torch.from_numpy(np.stack([world.draw(scene) for scene in scenes])).float() / 255
    latents = model.model.process_latent_in(torch.cat([vae.encode(some) for some in pictures.split(AT_ONCE)]))
    return latents + NOISE * torch.rand(DRAWN, 1, 1, 1) * torch.randn_like(latents)


def estimates(model: Any, clip: Any) -> Tensor:
    """(RUNS * steps, 4, 8, 8) in model space: what is expected at each step of plain runs, after CFG."""
    seen: list[Tensor] = []
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(args["denoised"].clone()) or args["denoised"])
    prompts = loop.prompts(RUNS, seed=5151)
    for first in range(0, RUNS, AT_ONCE):
        run(model, clip, prompts[first : first + AT_ONCE])
    return torch.cat(seen)


def run(model: Any, clip: Any, prompts: list[measure.Prompt]) -> None:
    positive, negative = (
        sampling.stacked([clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts])
        for texts in ([prompt.text for prompt in prompts], [""])
    )
    noise = torch.cat([comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 8), prompt.seed) for prompt in prompts])
    how = loop.SAMPLING
    comfy.sample.sample(
        model, noise, how["steps"], how["cfg"], how["sampler_name"], how["scheduler"], positive, negative,
        torch.zeros_like(noise), disable_pbar=True, seed=prompts[0].seed,
    )  # fmt: skip


def data() -> tuple[Tensor, Tensor]:
    """Latents in model space, and what the autoencoder decodes of them, (N, 3, 64, 64)."""
    with torch.inference_mode():
        model, clip, vae, _ = demo.load_demo_model()
        latents = torch.cat([noised_latents(model, vae), estimates(model, clip)])
        out = model.model.process_latent_out
        images = torch.cat([sampling.decode(vae, out(some)).half() for some in latents.split(AT_ONCE)])
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(0))
    return latents.clone()[order], images.clone()[order]


def layers(detector: Detector, images: Tensor) -> Iterator[Tensor]:
    """What each layer of the detector makes of the pictures but the first, which only folds pixels."""
    x = (images - 0.5) / 0.25
    for index, layer in enumerate(detector.features):
        x = layer(x)
        if index:
            yield x


def seen_otherwise(detector: Detector, made: Tensor, target: Tensor) -> Tensor:
    """Mean over the layers: absolute difference, in units of the layer's mean size."""
    pairs = zip(layers(detector, made), layers(detector, target), strict=True)
    return torch.stack([F.l1_loss(a, b) / b.abs().mean().clamp(min=1e-3) for a, b in pairs]).mean()


def tune(network: nn.Module, detector: Detector, latents: Tensor, images: Tensor, minutes: float) -> None:
    def loss() -> Tensor:
        rows = torch.randint(HELD_OUT, len(latents), (AT_ONCE,))
        made, target = network(latents[rows]), images[rows].float()
        return loss_of(made, target) + SEEN * seen_otherwise(detector, made, target)

    descend(network, RATE, minutes, loss)


@torch.no_grad()
def told(network: nn.Module, detector: Detector, latents: Tensor, images: Tensor) -> str:
    made, target = network(latents[:HELD_OUT]).clamp(0, 1), images[:HELD_OUT].float()
    ours, theirs = log_odds(detector, made), log_odds(detector, target)
    alike = float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1])
    return f"absolute error {F.l1_loss(made, target):.4f}, the detector's log-odds correlate by {alike:.3f}"


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    latents, images = data()
    path, detector = WEIGHTS / "model.safetensors", load_detector().requires_grad_(False)
    network = small_decoder.load(str(path)).requires_grad_(True)
    print("before:", told(network, detector, latents, images), flush=True)
    tune(network, detector, latents, images, asked.minutes)
    print("after:", told(network, detector, latents, images), flush=True)
    save_file({key: value.half().contiguous() for key, value in network.state_dict().items()}, path)


if __name__ == "__main__":
    main()
