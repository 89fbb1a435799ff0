"""The recipe of the demo model's small decoder. Twelve minutes on one core, after demo/train.py has made the latents.

    python demo/train_decoder.py [--minutes 12]

It learns what the autoencoder learned, the picture from its latents, and how latents average to colours for previews.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if not __package__:
    import pack  # noqa: F401

from feedback_loop.diffusion.small_decoder import SmallDecoder  # noqa: E402

ROOT = Path(__file__).parent
WORK, WEIGHTS = ROOT / ".work", ROOT / "weights" / "decoder"
BATCH, RATE, HELD_OUT = 64, 2e-3, 500
NOISE = 0.1  # on the latents, whose variance is 1: a steered estimate is no clean latent


def data() -> tuple[Tensor, np.ndarray]:
    from safetensors.torch import load_file

    return load_file(WORK / "latents.safetensors")["latents"], np.load(WORK / "pictures.npy", mmap_mode="r")


def as_images(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255


def edges(images: Tensor) -> Tensor:
    return torch.cat([images.diff(dim=-1).flatten(1), images.diff(dim=-2).flatten(1)], dim=1)


def loss_of(made: Tensor, target: Tensor) -> Tensor:
    """Absolute error of pixels and of their differences: a thin stroke weighs as much as a plain."""
    return F.l1_loss(made, target) + F.l1_loss(edges(made), edges(target))


def descend(network: nn.Module, rate: float, minutes: float, loss_of_batch: Callable[[], Tensor]) -> None:
    """Steps of AdamW for so many minutes of CPU time; the rate rises at once and falls to 0."""
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    start, step = time.process_time(), 0
    while (done := (time.process_time() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, 50 * done + 0.02) * (1 - done)
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f} {done * minutes * 60:.0f} s", flush=True)


def train(minutes: float, seed: int = 0) -> SmallDecoder:
    torch.manual_seed(seed)
    latents, pictures = data()
    network, rng = SmallDecoder(), np.random.default_rng(seed)

    def loss() -> Tensor:
        rows = np.sort(rng.integers(HELD_OUT, len(latents), BATCH))
        given = latents[rows] + NOISE * torch.rand(BATCH, 1, 1, 1) * torch.randn(BATCH, *latents.shape[1:])
        return loss_of(network(given), as_images(pictures[rows]))

    descend(network, RATE, minutes, loss)
    return network.eval()


def preview_factors() -> dict[str, list]:
    """Least squares from the four channels to the mean colour of their 8 x 8 pixels, in -1..1 as ComfyUI has it."""
    latents, pictures = data()
    means = F.avg_pool2d(as_images(pictures[:2000]), 8).permute(0, 2, 3, 1).reshape(-1, 3) * 2 - 1
    given = latents[:2000].permute(0, 2, 3, 1).reshape(-1, 4)
    given = torch.cat([given, torch.ones(len(given), 1)], dim=1)
    found = torch.linalg.lstsq(given, means).solution
    return {"factors": [[round(float(v), 4) for v in row] for row in found[:4]], "bias": found[4].tolist()}


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    network = train(asked.minutes)
    latents, pictures = data()
    with torch.no_grad():
        error = F.mse_loss(network(latents[:HELD_OUT]).clamp(0, 1), as_images(pictures[:HELD_OUT]))
    print(f"{-10 * float(error.log10()):.1f} dB on {HELD_OUT} pictures that it was not shown", flush=True)
    WEIGHTS.mkdir(exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, WEIGHTS / "model.safetensors")
    (WEIGHTS / "config.json").write_text(json.dumps(preview_factors(), indent=1) + "\n")


if __name__ == "__main__":
    main()
