"""MODEL, VAE and REWARD as the packages below need them: a Process, and weights that can stand in a graph.

The one place that leaves inference mode. ComfyUI runs a prompt inside `torch.inference_mode()`, and what loader nodes
made there, weights included, cannot take part in a backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Generic, TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import torch
from torch import Tensor, nn

from ..diffusion.process import Process
from ..feedback.rewards.base import Encoder, Reward

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class WrongConnectionError(ValueError):
    """Something that does not fit was connected; the message says what to connect instead."""


@contextmanager
def gradients() -> Iterator[None]:
    """Outside ComfyUI's inference mode and with gradients on; both are as before afterwards, also after an exception.

    The mode belongs to the thread that all nodes share: never await in here.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def training_kernels() -> Iterator[None]:
    """ComfyUI in its training mode, whatever it was in before."""
    before = comfy.model_management.in_training
    try:
        comfy.model_management.in_training = True  # comfy-kitchen's kernels have no backward pass
        yield
    finally:
        comfy.model_management.in_training = before


def alias(module: M, device: torch.device | None = None) -> M:
    """A second tree of modules that shares every weight of the first, made of normal tensors without gradients.

    Weights that are no plain tensors (quantised ones) are shared by reference. With a device, weights elsewhere are
    copied to it: ComfyUI streams what it offloads through buffers that are gone again by the backward pass. The tree
    is right for as long as ComfyUI leaves the weights where they are: see `Shared`.
    """
    return _copied(module, [module], device)


class Shared(Generic[T]):
    """`root` as a graph needs it: a copy that shares the weights of `networks` (see `alias`) and owns all else.

    Calling gives the copy, made again whenever ComfyUI has moved or replaced a weight in between. instead: what the
    copy holds in place of objects inside root, by their id. prepare: called with each new copy. `release` lets go of
    the weights' memory.
    """

    def __init__(
        self,
        root: T,
        networks: Sequence[nn.Module],
        device: torch.device | None = None,
        instead: Mapping[int, Any] | None = None,
        prepare: Callable[[T], None] | None = None,
    ) -> None:
        self._prepare = prepare
        self._root, self._networks, self._device, self._instead = root, list(networks), device, dict(instead or {})
        self._copy: T | None = None
        self._places: list[tuple[int, int]] = []

    def __call__(self) -> T:
        places = [(id(tensor), _place(tensor)) for tensor in _tensors(self._networks)]
        if self._copy is None or places != self._places:
            self._copy = _copied(self._root, self._networks, self._device, self._instead)
            self._places = places
            if self._prepare is not None:
                self._prepare(self._copy)
        return self._copy

    def release(self) -> None:
        self._copy = None


def _copied(
    root: T, networks: Sequence[nn.Module], device: torch.device | None, instead: Mapping[int, Any] | None = None
) -> T:
    with torch.inference_mode(False), torch.no_grad():
        memo: dict[int, Any] = {id(record): record for record in _memory_records(networks)}
        memo |= {id(tensor): _alias_tensor(tensor, device) for tensor in _tensors(networks)}
        return copy.deepcopy(root, memo | dict(instead or {}))


def _tensors(networks: Iterable[nn.Module]) -> Iterator[Tensor]:
    for network in networks:
        yield from chain(network.parameters(), network.buffers())


def _memory_records(networks: Iterable[nn.Module]) -> Iterator[Any]:
    """What ComfyUI's dynamic memory notes on modules; it holds handles that cannot be copied."""
    for network in networks:
        for module in network.modules():
            noted = vars(module)
            yield from (noted[name] for name in noted if name.startswith(("dynamic_", "_v", "_prefetch")))


def _place(tensor: Tensor) -> int:
    return tensor.data_ptr() if _is_plain(tensor) else 0


def _is_plain(tensor: Tensor) -> bool:
    # asking a quantised tensor of comfy-kitchen for its storage ends the process with a segmentation fault
    return type(tensor) in (Tensor, nn.Parameter)


def _alias_tensor(tensor: Tensor, device: torch.device | None) -> Tensor:
    if device is not None and tensor.device != device:
        moved = tensor.detach().to(device)
        return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
    if not _is_plain(tensor):
        return tensor
    shared = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    shared.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return nn.Parameter(shared, requires_grad=False) if isinstance(tensor, nn.Parameter) else shared


def process_of(model: comfy.model_patcher.ModelPatcher) -> Process:
    """The forward process of a MODEL. Raises WrongConnectionError, with its name, for one that we do not know."""
    return process_of_sampling(model.get_model_object("model_sampling"))


def process_of_sampling(sampling: Any) -> Process:
    """As `process_of`, for a model's `model_sampling` object; a schedule's shift is in its sigmas, not in the law."""
    law = comfy.model_sampling
    if isinstance(sampling, (law.IMG_TO_IMG, law.IMG_TO_IMG_FLOW)):
        raise WrongConnectionError(
            "This model turns one picture into another in a single pass and has no noise to guide. "
            "Connect a model that makes pictures from noise."
        )
    if isinstance(sampling, law.CONST):
        return Process("flow", noise_scale=float(getattr(sampling, "noise_scale", 1.0)))
    # EDM's own latents have the standard deviation sigma_data; V_PREDICTION and EDM are kinds of EPS in ComfyUI
    if isinstance(sampling, law.EDM):
        data = float(sampling.sigma_data)
        return Process("edm", sigma_data=data, latent_variance=data**2)
    if isinstance(sampling, law.V_PREDICTION):
        return Process("v", sigma_data=float(sampling.sigma_data))
    if isinstance(sampling, law.EPS):
        return Process("eps")
    names = ", ".join(base.__name__ for base in type(sampling).__bases__)
    raise WrongConnectionError(
        f"Feedback Loop does not know how this model adds noise ({names}). "
        "It knows EPS, X0, V_PREDICTION, EDM and flow models (CONST)."
    )


class _ManagedEncoder:
    """An encoder whose network is ComfyUI's to move: a reward that moves all it holds finds nothing here."""

    def __init__(self, encoder: Encoder) -> None:
        self.id, self._encoder = encoder.id, encoder

    def __call__(self, images: Tensor) -> Tensor:
        return self._encoder(images)

    def networks(self) -> list[nn.Module]:
        return []


def encoders_of(reward: Reward) -> list[Encoder]:
    """Every encoder object in a reward and the rewards it is made of, also several for one network."""
    parts = getattr(reward, "parts", ())
    return [*reward.encoders, *(encoder for part in parts for encoder in encoders_of(part))]


def normal_reward(reward: Reward) -> Shared[Reward]:
    """The reward in normal tensors; its encoders, which nodes make from ComfyUI's own models, see to theirs."""
    encoders = {id(encoder): _ManagedEncoder(encoder) for encoder in encoders_of(reward)}
    theirs = {id(network) for encoder in reward.encoders for network in encoder.networks()}
    own = [network for network in reward.networks() if id(network) not in theirs]
    return Shared(reward, own, comfy.model_management.vae_device(), instead=encoders)


def release_encoders(rewards: Iterable[Reward]) -> None:
    """Lets go of the weights of encoders that ComfyUI manages."""
    for encoder in chain.from_iterable(encoders_of(reward) for reward in rewards):
        getattr(encoder, "release", lambda: None)()


@contextmanager
def releasing(rewards: Iterable[Any]) -> Iterator[None]:
    """Lets go of those that are rewards after the block, however it ends."""
    try:
        yield
    finally:
        release_encoders(reward for reward in rewards if isinstance(reward, Reward))


class _Patcher:
    """A network's ModelPatcher, kept with the network. Copies of the network share it."""

    def __init__(self, network: nn.Module) -> None:
        device = comfy.model_management.vae_device()
        offload = comfy.model_management.vae_offload_device()
        self.patcher = comfy.model_patcher.ModelPatcher(network, device, offload)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Patcher:
        return self


def patcher_of(network: nn.Module) -> comfy.model_patcher.ModelPatcher:
    """The one ModelPatcher of a network of ours: ComfyUI takes a second one for a leak once the first is gone."""
    if "_feedback_loop_patcher" not in vars(network):
        vars(network)["_feedback_loop_patcher"] = _Patcher(network)
    return vars(network)["_feedback_loop_patcher"].patcher


def patchers_of(reward: Reward) -> list[comfy.model_patcher.ModelPatcher]:
    """One ModelPatcher for each network of the reward, so that ComfyUI's memory management sees them.

    An encoder may bring its own through a method `patchers`, as those made from a CLIP_VISION do.
    """
    brought = [patcher for encoder in reward.encoders for patcher in getattr(encoder, "patchers", list)()]
    new = [network for network in reward.networks() if not any(network is known.model for known in brought)]
    return brought + [patcher_of(network) for network in new]
