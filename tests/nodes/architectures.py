"""What docs/architectures.md says: each architecture's tiny model with each objective, tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.lora
import torch
from torch import Tensor

from feedback_loop.diffusion.stochastic import ancestral_step
from feedback_loop.feedback.rewards.colour import ColourReward
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.export_lora import kohya_names
from feedback_loop.nodes.gradient_check import central_difference
from feedback_loop.nodes.policy import Guided, Policy, Setup, trainable
from feedback_loop.nodes.reinforce_run import differentiable_score
from feedback_loop.nodes.training_run import with_lora
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.training import lora_files
from feedback_loop.training.loop import estimates
from feedback_loop.training.lora_files import LoraFileError
from feedback_loop.training.objectives import Batch, Nft, Objective, Sft
from feedback_loop.training.policy_gradient import Awm, Draft, Ppo, StepBatch
from feedback_loop.training.preferences import Dpo, Kto

from .test_policy import stock

NAMES = {
    "sd15": "Stable Diffusion 1.5", "sdxl": "SDXL", "sd3": "Stable Diffusion 3", "flux": "Flux",
    "qwen": "Qwen-Image", "zimage": "Z-Image (Lumina 2)", "wan": "Wan 2.1, stills",
}  # fmt: skip
OBJECTIVES: dict[str, Callable[[Policy, str], Objective]] = {
    "SFT": lambda policy, kind: Sft(),
    "DPO": lambda policy, kind: Dpo(5.0),
    "KTO": lambda policy, kind: Kto(5.0),
    "NFT": lambda policy, kind: Nft(),
    "AWM": lambda policy, kind: Awm(0.5),
    "PPO": lambda policy, kind: Ppo(0.5),
    "DRaFT": lambda policy, kind: Draft(
        differentiable_score(policy, tiny_models.vae(2, tiny_models.CHANNELS[kind]), ColourReward("brightness"))
    ),
}
TOLERANCE = 0.03
YES = "yes"

HEAD = """# Architectures and objectives

Each architecture by a small random model, built by ComfyUI's own classes. *yes* says that the gradient of that
objective agrees with finite differences to {tolerance:.0%}, with and without gradient checkpointing. *LoRA file*: what
was trained comes back through ComfyUI's own loader with max |dD| < 1e-5 in float32 and no unmatched key. *kohya*: the
file can be exported under kohya's names.

Anything else is written as it fails. An architecture that is not in this table is tried in the same way on a small
latent when a training begins, and refused by name if its gradient is wrong. So are quantised weights (fp8_scaled and
ComfyUI's other formats): the adapter is trained in float32 on top of them, and only where finite differences agree and
the predictions are the model's.

"""
TAIL = """
Made by `WRITE_DOCS=1 python3 start.py test --all tests/nodes/test_architectures.py`; a test compares it with what it
finds.
"""


def push(policy: Policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def started(model: Any, checkpointing: bool) -> Any:
    return trainable(model, rank=4, seed=0, setup=Setup(checkpointing=checkpointing))


def apart(policy: Policy) -> None:
    """The three views differ: the base, an old adapter, and a new one."""
    push(policy, 0)
    policy.adapters.follow(0.0)
    push(policy, 1)


def batch_for(name: str, kind: str, policy: Policy) -> Batch:
    """Two pictures of two prompts; for pairs of one prompt the first is chosen. PPO's are a sampler's steps."""
    generator = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, *tiny_models.latent_shape(kind, 2), generator=generator)
    sigma = torch.tensor([0.4, 0.4]) if name == "DPO" else torch.tensor([0.4, 0.7])
    conds: list[Any] = [tiny_models.conditioning(kind, seed) for seed in range(2)]
    x, kappa, label = policy.process.noise(x0, noise, sigma), policy.process.kappa(sigma), torch.tensor([1.0, -0.7])
    if name in ("PPO", "DRaFT"):
        conds = [Guided(cond, conds[1 - i], 2.0, "a") for i, cond in enumerate(conds)]
    if name == "NFT":
        label = torch.tensor([0.9, 0.2])
    if name != "PPO":
        return Batch(x0, x, sigma, kappa, label, conds)
    step = ancestral_step(policy.process, torch.tensor(0.7), torch.tensor(0.4), 1.0)
    with torch.no_grad():
        level = torch.full((2,), 0.7)
        after = step.take(x, policy.denoise(x, level, conds), torch.randn(x.shape, generator=generator))
        log_prob = step.log_probability(x, policy.denoise(x, level, conds), after) / x[0].numel()
    numbers = [torch.full((2,), float(v)) for v in (step.keep, step.pull, step.noise)]
    return StepBatch(x0, x, level, torch.ones(2), label, conds, after, *numbers, log_prob)


def gap(policy: Policy, objective: Objective, batch: Batch) -> float:
    """|slope by the backward pass - slope by finite differences of D| / the first, along the gradient.

    What an objective holds fixed (a normaliser, a safeguard) is fixed in the slope of D, too.
    """
    found = estimates(policy, objective, batch)
    loss = objective.losses(found, batch).double().mean()
    parameters = policy.parameters()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    length = torch.cat([g.flatten() for g in gradients]).norm()
    leaf = found["theta"].detach().requires_grad_()
    views = {name: (leaf if name == "theta" else value.detach()) for name, value in found.items()}
    (slope,) = torch.autograd.grad(objective.losses(views, batch).double().mean(), leaf)

    def along() -> Tensor:
        return (policy.denoise(batch.x, batch.sigma, batch.cond).double() * slope).sum()

    by_difference = central_difference(along, parameters, [g / length for g in gradients], 2e-2)
    return abs(float(length) - by_difference) / float(length) if float(length) > 0 else float("inf")


def cell(name: str, kind: str, policy: Policy) -> str:
    """The gradient of one objective on one architecture."""
    try:
        off = gap(policy, OBJECTIVES[name](policy, kind), batch_for(name, kind, policy))
    except (WrongConnectionError, RuntimeError, ValueError) as error:
        return f"no: {str(error).splitlines()[0][:80]}"
    return YES if off <= TOLERANCE else f"no: off by {off:.0%}"


def gradient_cells(kind: str) -> dict[str, str]:
    """Each objective, without checkpointing, and with it where that went well."""
    found = dict.fromkeys(OBJECTIVES, YES)
    for how, checkpointing in (("", False), (" with checkpointing", True)):
        with started(tiny_models.MODELS[kind](), checkpointing) as policy:
            apart(policy)
            for name in [name for name, said in found.items() if said == YES]:
                said = cell(name, kind, policy)
                found[name] = said if said == YES else said + how
    return found


def file_cell(kind: str, folder: Path) -> str:
    """The adapter through its file and ComfyUI's loader."""
    from safetensors.torch import load_file

    model, x = tiny_models.MODELS[kind](), torch.randn(tiny_models.latent_shape(kind, 2))
    sigma, cond = torch.tensor([0.3, 0.8]), tiny_models.conditioning(kind)
    with started(model, False) as policy, torch.no_grad():
        push(policy, 0)
        expected, layers = policy.denoise(x, sigma, [cond, cond]), policy.adapters.low_rank()
    path = folder / f"{kind}.safetensors"
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    lora_files.save(path, layers, lora_files.metadata(kind, kind, layers, {}), known)
    off = (stock(with_lora(model, load_file(path)), x, sigma, cond) - expected).abs().max()
    return YES if off < 1e-5 else f"no: off by {float(off):.1g}"


def kohya_cell(kind: str) -> str:
    try:
        return YES if kohya_names(tiny_models.MODELS[kind]()) else "no"
    except LoraFileError:
        return "-"


def page(cells: dict[tuple[str, str], str]) -> str:
    """cells: by architecture and column."""
    columns = list(dict.fromkeys(column for _, column in cells))
    rows = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for kind, title in NAMES.items():
        rows.append(f"| {title} | " + " | ".join(cells[kind, column] for column in columns) + " |")
    return HEAD.format(tolerance=TOLERANCE) + "\n".join(rows) + "\n" + TAIL


def row(kind: str, folder: Path) -> dict[tuple[str, str], str]:
    found = {(kind, name): said for name, said in gradient_cells(kind).items()}
    return found | {(kind, "LoRA file"): file_cell(kind, folder), (kind, "kohya"): kohya_cell(kind)}
