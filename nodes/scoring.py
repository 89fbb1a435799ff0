"""Rewards of clean latents in the middle of a run, without a gradient, and what a run has to say about them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from comfy.samplers import CFGGuider
from torch import Tensor

from ..feedback.rewards.base import Reward
from .decoder import BACKWARD_MEMORY, Decoder, check_pictures
from .denoiser import patchers_of, release_encoders


class LatentScores:
    """Clean latents in model space (M, C, *spatial) -> (M,) float32 on the CPU; some at a time, as memory allows.

    `load` has to be called once in a run, before its first step.
    """

    def __init__(self, reward: Reward, decoder: Decoder) -> None:
        self._reward, self._decoder = reward, decoder
        self._patchers = [decoder.patcher, *patchers_of(reward)]

    def load(self, guider: CFGGuider, shape: Sequence[int]) -> None:
        """Brings the decoder's and the reward's networks beside the models of a run that has begun, which stay."""
        needed = guider.inner_model.memory_required([2 * shape[0], *shape[1:]]) + self._memory(shape)
        running = [guider.model_patcher, *guider.loaded_models]
        comfy.model_management.load_models_gpu([*running, *self._patchers], memory_required=needed)

    def __call__(self, latents: Tensor) -> Tensor:
        free = comfy.model_management.get_free_memory(self._decoder.patcher.load_device)
        at_once = max(1, min(len(latents), int(free / max(self._memory(latents.shape), 1))))
        return torch.cat([self._scored(part) for part in latents.split(at_once)])

    def release(self) -> None:
        """After a run, so that ComfyUI can free the memory of what it unloads."""
        self._decoder.release()
        release_encoders([self._reward])

    def _scored(self, latents: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        with torch.no_grad():
            images = self._decoder(latents)
            self._reward.to(images.device)
            return self._reward(images).cpu()

    def _memory(self, shape: Sequence[int]) -> float:
        """Bytes for one picture; no graph is kept."""
        return self._decoder.memory_for((1, *check_pictures(shape)[1:])) / BACKWARD_MEMORY


def tell(node_id: Any, text: str) -> None:
    """Shows a text on a node while and after it works, and writes it to the log."""
    from server import PromptServer

    logging.info("Feedback Loop: %s", text)
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, str(node_id))
