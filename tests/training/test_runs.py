"""Checkpoints are whole or not there, and what is not whole is never loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from feedback_loop.training.runs import MANIFEST, Run, is_valid, load


def saved(folder: Path, *steps: int) -> Run:
    run = Run(folder)
    for step in steps:
        run.save(step, {"lora": {"a": torch.full((3,), float(step))}, "more": {"b": torch.ones(2)}}, {"seed": 7})
    return run


def test_a_checkpoint_reads_back(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", 120)
    checkpoint = run.latest()
    assert checkpoint is not None and checkpoint.name == "step-000120"
    step, tensors, about = load(checkpoint)
    assert (step, about) == (120, {"seed": 7})
    assert tensors["lora"]["a"].tolist() == [120.0] * 3 and tensors["more"]["b"].tolist() == [1.0, 1.0]


def test_the_newest_two_stay(tmp_path: Path) -> None:
    run = saved(tmp_path, 5, 10, 15, 20)
    assert [path.name for path in run.checkpoints()] == ["step-000015", "step-000020"]


def test_the_newest_stay_from_the_millionth_step_on(tmp_path: Path) -> None:
    """By their numbers: by its letters step-1000000 would come before step-999999."""
    run = saved(tmp_path, 999_998, 999_999, 1_000_000)
    assert [path.name for path in run.checkpoints()] == ["step-999999", "step-1000000"]
    assert run.latest() == tmp_path / "step-1000000"


@pytest.mark.parametrize("damage", ["bytes", "missing file", "missing manifest", "torn manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    run = saved(tmp_path, 5, 10)
    newest = run.checkpoints()[-1]
    file = newest / ("lora.safetensors" if damage in ("bytes", "missing file") else MANIFEST)
    if damage.startswith("missing"):
        file.unlink()
    else:
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage == "bytes" else whole[: len(whole) // 2])
    assert not is_valid(newest)
    assert run.latest() == run.checkpoints()[0]
    with pytest.raises(ValueError, match="damaged"):
        load(newest)


def test_damaged_checkpoints_do_not_push_out_whole_ones(tmp_path: Path) -> None:
    run = saved(tmp_path, 5, 10)
    (run.checkpoints()[-1] / MANIFEST).unlink()
    saved(tmp_path, 15)
    assert [p.name for p in run.checkpoints() if is_valid(p)] == ["step-000005", "step-000015"]


def test_what_a_killed_writer_leaves_is_no_checkpoint(tmp_path: Path) -> None:
    """A kill before the rename leaves a folder of another name, without or with all of its files."""
    run = saved(tmp_path, 5)
    shutil.copytree(tmp_path / "step-000005", tmp_path / ".step-000010.1234.part")
    assert [path.name for path in run.checkpoints()] == ["step-000005"]


def test_a_checkpoint_is_due_after_enough_steps_or_minutes(tmp_path: Path) -> None:
    by_steps = Run(tmp_path / "a", every_steps=10, every_minutes=1e9)
    assert [step for step in range(1, 25) if by_steps.due(step)][0] == 10
    by_steps.save(10, {}, {})
    assert not by_steps.due(19) and by_steps.due(20)
    assert Run(tmp_path / "b", every_steps=10**9, every_minutes=0.0).due(1)


def test_nothing_is_made_before_the_first_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.latest() is None and not run.folder.exists()
