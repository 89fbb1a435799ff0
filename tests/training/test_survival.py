"""Runs that survive: killed at any moment, terminated, out of memory, or with a loss that is no number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from feedback_loop.training.following import Checks, Follower
from feedback_loop.training.loop import DivergedError, Plan, Step
from feedback_loop.training.objectives import Sft
from feedback_loop.training.runs import Run, is_valid, load

from . import lives
from .small import Policy, follower_of, progress_of, source


def lived(folder: Path, mode: str, seed: int = 0) -> int:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(Path(lives.__file__)), str(folder), mode, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


def states(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "state.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """How the run ends when nobody kills it: adapter, moving average, Adam's moments and the old view."""
    folder = tmp_path_factory.mktemp("whole")
    lived(folder, "whole")
    return states(folder)


def assert_bit_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert {name.split(".")[0] for name in a} == {"theta", "average", "adam_m", "adam_v", "old"}
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_is_killed_again_and_again_ends_where_an_undisturbed_one_does(
    tmp_path: Path, undisturbed: dict[str, Tensor]
) -> None:
    assert lived(tmp_path / "run", "killed", seed=1) >= 2
    assert_bit_equal(states(tmp_path / "run"), undisturbed)


def test_a_run_that_is_killed_in_each_part_of_a_checkpoint_ends_there_too(
    tmp_path: Path, undisturbed: dict[str, Tensor]
) -> None:
    """Five groups, the manifest, the folder, and its parent are flushed for a checkpoint: more than eight deaths."""
    assert lived(tmp_path / "run", "flush") > 8
    assert_bit_equal(states(tmp_path / "run"), undisturbed)
    assert not list((tmp_path / "run").glob(".*.part"))


@pytest.fixture(scope="module")
def undisturbed_online(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("online")
    lived(folder, "online")
    return folder


def assert_same_lora(a: Path, b: Path) -> None:
    assert_bit_equal(states(a), states(b))
    assert (a / "lora.safetensors").read_bytes() == (b / "lora.safetensors").read_bytes()


@pytest.mark.long
def test_a_run_on_its_own_pictures_that_is_killed_again_and_again_ends_where_an_undisturbed_one_does(
    tmp_path: Path, undisturbed_online: Path
) -> None:
    """Four epochs, whose pictures are drawn by the old view: what is trained on depends on all before."""
    assert lived(tmp_path / "run", "online killed", seed=1) >= 2
    assert_same_lora(tmp_path / "run", undisturbed_online)


@pytest.mark.long
def test_a_run_that_is_killed_inside_of_keeping_its_pictures_or_its_lora_ends_there_too(
    tmp_path: Path, undisturbed_online: Path
) -> None:
    assert lived(tmp_path / "run", "online files") == len(lives.FILES)
    assert_same_lora(tmp_path / "run", undisturbed_online)
    assert not list((tmp_path / "run" / "rollouts").glob("drawn-*"))


def test_a_terminated_run_saves_its_last_step_before_the_process_ends(tmp_path: Path) -> None:
    """SIGTERM's own exit code, and a checkpoint of the very step that was being taken, which is not one in three."""
    assert lived(tmp_path / "run", "terminated") == -15
    last = Run(tmp_path / "run").latest()
    begun = len((tmp_path / "run" / "begun").read_text().splitlines())
    assert last is not None and last.name == f"step-{begun:06}"


def test_an_interrupt_saves_the_last_finished_step_and_is_raised_again(tmp_path: Path) -> None:
    """Interrupted while step 5 is shown; checkpoints are due every 3: both 3 and 5 are there, and 5 goes on to 20."""

    class Cancelled(BaseException):
        pass

    follower, policy, made, objective, plan = follower_of(tmp_path / "run", every=3)

    def show(step: Step, history: Any) -> None:
        if step.done == 5:
            raise Cancelled

    follower.show = show
    with pytest.raises(Cancelled):
        follower.follow(policy, made, objective, plan)
    assert [p.name for p in follower.run.checkpoints()] == ["step-000003", "step-000005"]
    again, policy, made, objective, plan = follower_of(tmp_path / "run", every=3)
    assert again.resume() and again.progress.step == 5 and len(again.history.losses) == 5
    again.follow(policy, made, objective, plan)
    whole, other, made, objective, plan = follower_of(tmp_path / "whole", every=100)
    whole.follow(other, made, objective, plan)
    assert all(torch.equal(a, b) for a, b in zip(policy.state(), other.state(), strict=True))
    assert again.history.losses == whole.history.losses


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    follower, policy, made, objective, plan = follower_of(tmp_path, every=3)
    follower.follow(policy, made, objective, plan)
    other = Follower(Run(tmp_path), progress_of(Policy()), {"steps": 21})
    assert not other.resume() and other.progress.step == 0


def test_a_checkpoint_of_another_rank_is_refused_in_a_sentence() -> None:
    policy = Policy()
    tensors, numbers = progress_of(policy).tensors(), progress_of(policy).numbers()
    tensors["theta"] = {name: value[:1] for name, value in tensors["theta"].items()}
    with pytest.raises(ValueError, match="another model, rank or kind"):
        progress_of(policy).restore(tensors, numbers)


def test_running_out_of_memory_is_remembered_in_a_checkpoint(tmp_path: Path) -> None:
    """Room for 2 of 6: in three halvings 4 parts of 2, and the step that found it out is saved though none was due."""
    policy = Policy(limit=2)
    follower = Follower(Run(tmp_path, every_steps=10**6, every_minutes=1e9), progress_of(policy), {})
    seen: list[str] = []
    follower.show = lambda step, history: seen.append(",".join(p.name for p in follower.run.checkpoints()))
    follower.follow(policy, source(torch.linspace(0, 2, 12)), Sft(), Plan(3, 1e-2))
    assert seen[0] == "step-000001"
    again = Follower(Run(tmp_path), progress_of(Policy(limit=2)), {})
    assert again.resume() and again.progress.parts == 4


class Broken(Sft):
    """Its loss is no number from the `first` to the `last` time that it is asked at learning rates above a limit."""

    def __init__(self, times: int) -> None:
        super().__init__()
        object.__setattr__(self, "left", times)

    def losses(self, denoised: Any, batch: Any) -> Tensor:
        losses = super().losses(denoised, batch)
        if self.left and denoised["theta"].detach().abs().sum() != 0 and self.armed():
            object.__setattr__(self, "left", self.left - 1)
            return losses * float("nan")
        return losses

    def armed(self) -> bool:
        object.__setattr__(self, "asked", getattr(self, "asked", 0) + 1)
        return self.asked >= 5  # type: ignore[attr-defined]


@pytest.mark.parametrize("times", [1, 2])
def test_a_loss_that_is_no_number_sends_the_run_back_at_half_the_rate(tmp_path: Path, times: int) -> None:
    """Saved at step 3, broken in the fifth: back to 3 with lr / 2, twice lr / 4; the curve has one loss a step."""
    policy = Policy()
    rates: list[float] = []
    follower = Follower(Run(tmp_path, every_steps=3, every_minutes=1e9), progress_of(policy), {})
    follower.show = lambda step, history: rates.append(step.lr)
    plan = Plan(8, 1e-2)
    follower.follow(policy, source(torch.linspace(0, 2, 12)), Broken(times), plan)
    assert follower.progress.lr_scale == 0.5**times
    assert rates[:4] == [plan.lr_at(step) for step in range(4)]
    assert rates[4] == pytest.approx(plan.lr_at(3) * 0.5**times)
    assert len(follower.history.losses) == 8


def test_a_loss_that_is_no_number_a_third_time_ends_the_run_with_the_last_good_weights(tmp_path: Path) -> None:
    policy = Policy()
    follower = Follower(Run(tmp_path, every_steps=3, every_minutes=1e9), progress_of(policy), {})
    with pytest.raises(DivergedError, match="also at lower rates"):
        follower.follow(policy, source(torch.linspace(0, 2, 12)), Broken(99), Plan(8, 1e-2))
    assert follower.progress.step == 3
    assert all(value.isfinite().all() for value in follower.progress.average.values)


def breaking(follower: Follower, at: int) -> None:
    """The optimiser's step number `at`, counted over setbacks too, leaves a weight infinite, though its gradient was
    finite, as an overflow does."""
    seen = [0]

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen[0] += 1
        if seen[0] == at:
            with torch.no_grad():
                follower.progress.parameters[0].view(-1)[0] = torch.inf

    follower.progress.optimizer.register_step_post_hook(after)


@pytest.mark.parametrize("every", [1, 5], ids=["a checkpoint each step", "a checkpoint at the step that breaks"])
def test_a_step_that_breaks_a_weight_is_never_what_the_run_goes_back_to(tmp_path: Path, every: int) -> None:
    """Step 5 breaks the weights where a checkpoint is due: the run goes back to what was saved before and gets to its
    end, with one setback, and no checkpoint ever holds a weight that is no number."""
    policy = Policy()
    follower = Follower(Run(tmp_path, 99, every, 1e9), progress_of(policy), {})
    breaking(follower, at=5)
    follower.follow(policy, source(torch.linspace(0, 2, 12)), Sft(), Plan(8, 1e-2))
    assert follower.progress.step == 8 and follower.progress.setbacks == 1
    for path in follower.run.checkpoints():
        _, tensors, _ = load(path)
        assert all(t.isfinite().all() for named in tensors.values() for t in named.values()), path
    assert follower.progress.is_finite()


@pytest.mark.parametrize("where", ["theta", "average"])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, where: str) -> None:
    follower, policy, made, objective, plan = follower_of(tmp_path, every=3)
    follower.follow(policy, made, objective, plan)
    before = follower.run.latest()
    broken = follower.progress.parameters if where == "theta" else follower.progress.average.values
    with torch.no_grad():
        broken[-1].view(-1)[0] = torch.nan
    follower.progress.step += 1
    follower.checkpoint()
    assert before is not None and follower.run.latest() == before
    follower.back.go_back()
    assert follower.progress.is_finite() and follower.progress.step == 20


def test_the_run_stops_when_the_held_out_loss_rises_and_hands_out_the_best(tmp_path: Path) -> None:
    """Held-out losses 5, 4, 3, 6, 7, 8 every 2 steps with patience 2: the best is step 6, the end step 10."""
    policy, values = Policy(), iter([5.0, 4.0, 3.0, 6.0, 7.0, 8.0])
    averages: list[list[Tensor]] = []
    progress = progress_of(policy)
    follower = Follower(Run(tmp_path, every_steps=1, every_minutes=1e9), progress, {}, Checks(values.__next__, 2, 2))
    follower.show = lambda step, history: averages.append([v.clone() for v in progress.average.values])
    follower.follow(policy, source(torch.linspace(0, 2, 12)), Sft(), Plan(50, 1e-2))
    assert len(follower.history.losses) == 10
    assert follower.history.checks == [[2, 5.0], [4, 4.0], [6, 3.0], [8, 6.0], [10, 7.0]]
    assert all(torch.equal(a, b) for a, b in zip(follower.best_average(), averages[5], strict=True))
    best = follower.run.best()
    assert best is not None and best.name == "step-000006" and is_valid(best)
    assert [p.name for p in follower.run.checkpoints()] == ["step-000006", "step-000009", "step-000010"]
    assert "held-out loss did not fall" in follower.history.events[0]
