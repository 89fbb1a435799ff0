"""What training keeps in memory, seen from outside: what torch saves for the backward pass, and what is freed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy import supported_models
from torch import Tensor

from feedback_loop.feedback.rewards.colour import ColourReward
from feedback_loop.nodes.checkpointing import blocks
from feedback_loop.nodes.memory import need_of
from feedback_loop.nodes.policy import CONDITIONS, Guided, Policy, Setup, trainable
from feedback_loop.nodes.reinforce_run import differentiable_score
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.training.objectives import Batch, Sft
from feedback_loop.training.policy_gradient import Draft
from feedback_loop.training.sources import Example, ForwardSource

from .test_policy import SIGMA, noised, prompts

pytestmark = pytest.mark.usefixtures("inference_mode")

DEEPER = {
    "sd3": (supported_models.SD3, tiny_models._SD3 | {"num_blocks": 6}),
    "flux": (supported_models.Flux, tiny_models._FLUX | {"depth": 3, "depth_single_blocks": 3}),
    "qwen": (supported_models.QwenImage, tiny_models._QWEN | {"num_layers": 6}),
    "zimage": (supported_models.ZImage, tiny_models._ZIMAGE | {"n_layers": 6}),
    "wan": (supported_models.WAN21_T2V, tiny_models._WAN | {"num_layers": 6}),
}
"""Where the tiny model has one or two blocks: a single one has to be kept in any case."""


def deep(kind: str) -> Any:
    if kind not in DEEPER:
        return tiny_models.MODELS[kind]()
    config, settings = DEEPER[kind]
    return tiny_models._patcher(config(settings), 0)


class Kept:
    """Bytes of distinct storages that torch keeps for the backward pass, weights aside.

    By autograd's own hook, and by what goes into each block: a checkpointed block keeps that, without telling autograd.
    """

    def __init__(self, policy: Policy) -> None:
        self.held = {p.untyped_storage().data_ptr(): p for p in policy.inner.parameters()}
        self.weights = set(self.held)
        self.calls = 0

    def add(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            self.held.setdefault(value.untyped_storage().data_ptr(), value)
        return value

    def watch(self, block: Any) -> None:
        def before(_: Any, inputs: Any, named: Any) -> None:
            for value in (*inputs, *named.values()):
                self.add(value)

        block.register_forward_pre_hook(before, with_kwargs=True)

    def count(self, part: Any) -> None:
        """Counts how often a layer is computed."""

        def forward(*_: Any) -> None:
            self.calls += 1

        part.register_forward_hook(forward)

    def bytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for at, t in self.held.items() if at not in self.weights)


@pytest.mark.parametrize("kind", sorted(tiny_models.MODELS))
def test_checkpointing_truly_saves_and_computes_again(kind: str) -> None:
    """Around the real forward pass: a third less is kept, and the backward pass computes a block's layer once more."""
    x, conds, kept = noised(kind), prompts(kind, 77), []
    for checkpointing in (False, True):
        with trainable(deep(kind), rank=2, seed=0, setup=Setup(checkpointing=checkpointing)) as policy:
            seen, found = Kept(policy), list(blocks(policy.inner.diffusion_model))
            for block in found if checkpointing else ():
                seen.watch(block)
            seen.count(next(m for m in found[0].modules() if isinstance(m, torch.nn.Linear)))
            with torch.autograd.graph.saved_tensors_hooks(seen.add, lambda tensor: tensor):
                loss = policy.denoise(x, SIGMA, conds).square().mean()
            kept.append(seen.bytes())
            before = seen.calls
            loss.backward()
            assert (seen.calls - before > 0) is checkpointing
            assert any(p.grad is not None and bool(p.grad.any()) for p in policy.parameters())
    assert 0 < kept[1] < 0.67 * kept[0], f"{kept[1] / kept[0]:.2f}"


def draft_batch(x: Tensor, conds: list[Any]) -> Batch:
    ones = torch.ones(len(x))
    return Batch(x, x, SIGMA, ones, ones, [Guided(cond, conds[1], 1.0, "a") for cond in conds])


def test_the_estimate_of_draft_holds_the_decoder_and_the_reward() -> None:
    """What torch saves for a loss through VAE and reward: several times what the network alone keeps. The decoder's
    weights, which autograd saves too, count as well."""
    x, conds = noised("sd15"), prompts("sd15", 77)
    with trainable(tiny_models.sd15(), rank=2, seed=0) as policy:
        objective = Draft(differentiable_score(policy, tiny_models.vae(), ColourReward("brightness")), kl=0.0)
        batch = draft_batch(x, conds)
        alone = need_of(policy, Sft(), batch).graph
        counted = need_of(policy, objective, batch).graph
        seen, part = Kept(policy), batch.part(0, 1)
        with torch.autograd.graph.saved_tensors_hooks(seen.add, lambda tensor: tensor):
            estimate = {"theta": policy.denoise(part.x, part.sigma, part.cond)}
            objective.losses(estimate, part)  # type: ignore[arg-type]
    assert counted == pytest.approx(seen.bytes(), rel=0.02)
    assert counted > 1.5 * alone


def test_the_largest_picture_is_measured() -> None:
    """Latents of 8 x 8 and one of 16 x 16: the step that sees the large one, whichever it is."""
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(4, side, side, generator=generator) for side in (8, 8, 16, 8, 8)]
    examples = [Example(latent, "a", 1.0) for latent in latents]
    with trainable(tiny_models.sd15(), rank=2, seed=0) as policy:
        for seed in range(4):
            conds = {"a": prompts("sd15", 77)[0], "": prompts("sd15", 77)[1]}
            source = ForwardSource(examples, conds, policy.process, policy.sigma_at, 2, seed)
            assert source.batch_at(source.largest_step()).x.shape[-1] == 16


def test_conditions_do_not_pile_up() -> None:
    """As many prompts as are kept, and four more: the oldest go, and what comes again is the same."""
    x = noised("sd15")[:1]
    made = [tiny_models.conditioning("sd15", seed) for seed in range(CONDITIONS + 4)]
    with trainable(tiny_models.sd15(), rank=2, seed=0) as policy, torch.no_grad():
        first = policy._model_conds(made[0], tuple(x.shape[1:]))["c_crossattn"].cond
        for cond in made:
            policy._model_conds(cond, tuple(x.shape[1:]))
        assert len(policy._conds) == CONDITIONS
        assert torch.equal(policy._model_conds(made[0], tuple(x.shape[1:]))["c_crossattn"].cond, first)
