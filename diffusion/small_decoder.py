"""The demo model's small decoder: a sixteenth of its autoencoder's work, for rewards that look at every step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEEP, FINE = 64, 48


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class SmallDecoder(nn.Module):
    """Latents in model space (B,4,h,w) -> pictures (B,3,8h,8w) around 0..1. Nearly all work is done at the latents'
    size: there a channel costs a sixtieth of what it costs at the picture's."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(nn.Conv2d(4, DEEP, 3, padding=1), _Residual(DEEP), _Residual(DEEP))
        self.wider = nn.Conv2d(DEEP, 4 * FINE, 3, padding=1)
        self.fine = nn.Sequential(_Residual(FINE), nn.SiLU(), nn.Conv2d(FINE, 3 * 16, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        twice = F.pixel_shuffle(self.wider(F.silu(self.deep(latents))), 2)
        return 0.5 + 0.25 * F.pixel_shuffle(self.fine(twice), 4)

    def decode(self, latents: Tensor) -> Tensor:
        """Under the name that ComfyUI's autoencoders have for it."""
        return self(latents)


def load(path: str) -> SmallDecoder:
    """Raises the errors of safetensors and of `load_state_dict` for another file."""
    from safetensors.torch import load_file

    with torch.inference_mode(False):
        network = SmallDecoder()
        network.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return network.eval().requires_grad_(False)
