"""What a reward is: pictures in, one number for each out, higher is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn


class Encoder(Protocol):
    """A frozen image encoder. `id` names the network and its weights: two encoders with one id give one embedding."""

    id: str

    def __call__(self, images: Tensor) -> Tensor:
        """(B,3,H,W) in 0..1 -> (B,F); differentiable when gradients are on."""
        ...

    def networks(self) -> list[nn.Module]: ...


Embed = Callable[[Encoder], Tensor]


class RewardError(ValueError):
    """A reward that cannot be used as asked; the message says what to do."""


def embed_once(images: Tensor) -> Embed:
    """A function encoder -> features of `images` that runs each encoder (by its id) at most once."""
    known: dict[str, Tensor] = {}

    def embed(encoder: Encoder) -> Tensor:
        if encoder.id not in known:
            known[encoder.id] = encoder(images).float()
        return known[encoder.id]

    return embed


class Reward(ABC):
    """Scores pictures. Subclasses write `score`; callers use the reward as a function.

    A reward that can be saved sets `kind` and writes `state` and `from_state`; see files.py.
    """

    kind: ClassVar[str] = ""
    name: str
    differentiable: bool = True
    negligible: float = 1e-3
    """A change of this reward that is not worth steering for: where no larger one is in reach, guidance lets go."""
    reach: float = 1.0
    """How far guidance of strength 1 goes for this reward, as a share of its trust region. Less for one that is never
    satisfied: it pulls at every step, and what the prompt asks for pays. More for one that lets go where it is."""
    encoders: tuple[Encoder, ...] = ()
    warning: str = ""
    """What whoever optimises this reward should be told first; empty when there is nothing to say."""

    def __call__(self, images: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """images: (B,3,H,W) in 0..1, any float type -> (B,) fp32. Raises RewardError for another shape."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise RewardError(
                f"A reward takes RGB pictures of shape (B,3,H,W), but it was given {tuple(images.shape)}."
            )
        if prompts is not None and len(prompts) != len(images):
            raise RewardError(
                f"There are {len(images)} pictures but {len(prompts)} prompts; give one prompt a picture."
            )
        # fp32 because gradients of log-odds and of z-scored features underflow in half precision
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            return self.score(images, prompts, embed_once(images)).float()

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        """fp32 images -> (B,). `embed` gives an encoder's features of these same images, computed once for all."""

    def at(self, percent: float) -> Reward | None:
        """What counts at this share of a run, 0 its beginning and 1 its end; None where nothing does.

        For whoever asks while sampling. A finished picture is judged by the reward itself.
        """
        return self

    def networks(self) -> list[nn.Module]:
        """Modules with weights, for whoever manages memory; each appears once."""
        found = [network for encoder in self.encoders for network in encoder.networks()]
        return list(dict.fromkeys(found))

    def to(self, device: torch.device | str) -> None:
        """Moves all that the reward holds; in place."""
        for network in self.networks():
            network.to(device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON settings) from which `from_state` makes the same reward again."""
        raise RewardError(f"A reward of the kind '{self.name}' cannot be saved.")

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], settings: dict[str, Any], encoders: Sequence[Encoder]) -> Reward:
        """The reverse of `state`. `encoders`: those at hand. Raises RewardError when the needed one is missing."""
        raise NotImplementedError(cls.__name__)


def matching_encoder(encoders: Sequence[Encoder], wanted: str) -> Encoder:
    """The encoder with the id `wanted`. Raises RewardError that says what to connect."""
    for encoder in encoders:
        if encoder.id == wanted:
            return encoder
    if not encoders:
        raise RewardError(f"This reward was fitted on an image encoder ({wanted}): connect that CLIP_VISION model.")
    have = ", ".join(encoder.id for encoder in encoders)
    raise RewardError(
        f"This reward was fitted on the image encoder {wanted}, but the one connected is {have}. "
        "Connect the CLIP_VISION model that it was fitted on, or fit the reward again on this one."
    )
