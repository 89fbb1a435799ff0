"""The table of architectures and objectives is what is found when each is tried; what fails is refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from feedback_loop.nodes import gradient_check
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.gradient_check import check_gradients
from feedback_loop.nodes.policy import trainable
from feedback_loop.tests.nodes import architectures, tiny_models
from feedback_loop.training.objectives import Batch

from .test_policy import SIGMA, noised, prompts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"

pytestmark = pytest.mark.usefixtures("inference_mode")


QUICK = [kind for kind in architectures.NAMES if kind not in ("sd15", "sdxl")]
LONG = [pytest.param(kind, marks=pytest.mark.long) for kind in ("sd15", "sdxl")]
"""PEFT takes its time over the many layers of a UNet."""


@pytest.mark.parametrize("kind", [*LONG, *QUICK])
def test_the_table_says_of_an_architecture_what_is_found(kind: str, tmp_path: Path) -> None:
    found = architectures.row(kind, tmp_path)
    FOUND.update(found)
    if os.environ.get("WRITE_DOCS"):
        return
    title = architectures.NAMES[kind]
    (line,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {title} |")]
    assert line == f"| {title} | " + " | ".join(found.values()) + " |"


FOUND: dict[tuple[str, str], str] = {}


def test_the_page_has_every_architecture_that_the_tests_know_and_is_written_on_request() -> None:
    assert set(architectures.NAMES) == set(tiny_models.MODELS)
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(architectures.page(FOUND), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    cells = {
        (kind, column): ""
        for kind in architectures.NAMES
        for column in (*architectures.OBJECTIVES, "LoRA file", "kohya")
    }
    assert text.startswith(architectures.page(cells).split("| Stable")[0]) and text.endswith(architectures.TAIL)


@pytest.mark.parametrize("kind", architectures.NAMES)
def test_the_networks_of_the_table_are_those_that_need_no_check_when_a_run_begins(kind: str) -> None:
    assert type(tiny_models.MODELS[kind]().model.diffusion_model).__name__ in gradient_check.TESTED


def batch(kind: str) -> Batch:
    x, ones = noised(kind), torch.ones(3)
    return Batch(x, x, SIGMA, ones, ones, prompts(kind, 77))


@pytest.mark.parametrize("kind", ["sd15", "flux", "wan"])
def test_an_architecture_that_nobody_tried_is_tried_when_a_run_begins(kind: str, monkeypatch: Any) -> None:
    """Right gradients pass, and the adapter is bit-equal afterwards."""
    monkeypatch.setattr(gradient_check, "TESTED", ())
    with trainable(tiny_models.MODELS[kind](), rank=4, seed=0) as policy:
        before = [p.clone() for p in policy.parameters()]
        check_gradients(policy, batch(kind))
        assert all(torch.equal(p, q) for p, q in zip(policy.parameters(), before, strict=True))


class Half(torch.autograd.Function):
    """The same number, with half of its gradient: what an overwritten tensor does to a backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] / 2


@pytest.mark.parametrize("name", ["SFT", "PPO"])
def test_the_table_would_say_no_to_a_wrong_gradient(name: str) -> None:
    with architectures.started(tiny_models.sd15(), False) as policy:
        architectures.apart(policy)
        assert architectures.cell(name, "sd15", policy) == "yes"
        policy.inner.diffusion_model.out.register_forward_hook(lambda *a: Half.apply(a[2]))
        assert architectures.cell(name, "sd15", policy).startswith("no: off by")


class NoBackward(torch.autograd.Function):
    """A kernel without a backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


@pytest.mark.parametrize(
    ("bend", "says"),
    [
        (Half.apply, "by the backward pass and .* by finite differences"),
        (NoBackward.apply, "a backward pass through it fails"),
        (Tensor.detach, "can't be trained here"),
    ],
)
def test_an_architecture_with_a_wrong_gradient_is_refused_by_name(bend: Any, says: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(gradient_check, "TESTED", ())
    with trainable(tiny_models.sd15(), rank=4, seed=0) as policy:
        policy.inner.diffusion_model.out.register_forward_hook(lambda *a: bend(a[2]))
        with pytest.raises(WrongConnectionError, match=rf"(?s)This MODEL \(SD15\).*{says}"):
            check_gradients(policy, batch("sd15"))
