"""The command line: tokens of a team, and going back to a backup."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from feedback_loop.feedback import commands
from feedback_loop.feedback.records import Generation, Rating
from feedback_loop.feedback.store import FeedbackStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(commands.URL, raising=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (folder := tmp_path / "user" / "__feedback_loop").mkdir(parents=True)
    return folder


def opened(data: Path) -> FeedbackStore:
    return FeedbackStore(f"sqlite:///{data / commands.DATABASE}", data / "media")


def rated(store: FeedbackStore, grey: int, stars: float) -> str:
    id_ = store.add_image(np.full((8, 8, 3), grey, np.uint8), Generation(), "default")
    store.add_rating(Rating(id_, stars, "Zoe"))
    return id_


def values(data: Path) -> list[float]:
    store = opened(data)
    try:
        return [one.raw for one in store.rated(store.feedback())]
    finally:
        store.close()


def backed_up(data: Path) -> str:
    """The name of a backup in the folder backups; the store is closed."""
    (folder := data / "backups").mkdir(exist_ok=True)
    commands._copy(data / commands.DATABASE, folder / "one")
    return "one"


def test_a_token_is_printed_once_and_is_its_raters_until_it_is_withdrawn(data: Path, capsys: pytest.CaptureFixture):
    assert commands.main(["--data", str(data), "token", "add", "Ann Lee"]) == 0
    token = capsys.readouterr().out.strip()
    store = opened(data)
    assert store.rater_of_token(token) == "Ann Lee"
    assert commands.main(["--data", str(data), "token", "withdraw", "Ann Lee"]) == 0
    assert store.rater_of_token(token) is None
    store.close()


def test_a_name_that_can_not_be_kept_is_refused_in_a_sentence(data: Path, capsys: pytest.CaptureFixture):
    assert commands.main(["--data", str(data), "token", "add", ""]) == 1
    assert commands.main(["--data", str(data), "token", "withdraw", "nobody"]) == 1
    assert "name is empty" in (said := capsys.readouterr().err)
    assert "nobody" in said


def test_a_missing_data_folder_is_named_and_not_made(tmp_path: Path, capsys: pytest.CaptureFixture):
    missing = tmp_path / "elsewhere"
    assert commands.main(["--data", str(missing), "token", "add", "Ann"]) == 1
    assert str(missing) in capsys.readouterr().err
    assert not missing.exists()


def test_a_restored_database_is_that_of_the_backup_and_the_other_is_kept(data: Path):
    store = opened(data)
    rated(store, 1, 2)
    store.close()
    name = backed_up(data)
    store = opened(data)
    rated(store, 2, 5)
    store.close()
    assert values(data) == [2, 5]
    assert "replaced" in commands.restored(data, name)
    assert values(data) == [2]
    (kept,) = data.glob("feedback-replaced-*.backup")
    commands.restored(data, kept.name)
    assert values(data) == [2, 5]


def test_a_damaged_database_is_replaced_and_kept_as_it_is(data: Path):
    store = opened(data)
    rated(store, 1, 2)
    store.close()
    name = backed_up(data)
    (data / commands.DATABASE).write_bytes(b"no database" * 1000)
    (data / f"{commands.DATABASE}-journal").write_bytes(b"of another file")
    commands.restored(data, name)
    assert values(data) == [2]
    (kept,) = data.glob("feedback-replaced-*.backup")
    assert kept.read_bytes() == b"no database" * 1000


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + b"x" * 5000, b"<html>"])
def test_what_is_no_backup_changes_nothing(data: Path, content: bytes):
    store = opened(data)
    rated(store, 1, 2)
    store.close()
    (data / "bad.backup").write_bytes(content)
    before = sorted(path.name for path in data.iterdir())
    with pytest.raises(commands.CommandError, match="Nothing was changed"):
        commands.restored(data, "bad.backup")
    assert sorted(path.name for path in data.iterdir()) == before
    assert values(data) == [2]


def test_a_backup_that_is_not_there_is_answered_with_those_that_are(data: Path):
    (data / "feedback-0001.backup").write_bytes(b"")
    with pytest.raises(commands.CommandError, match="feedback-0001.backup"):
        commands.restored(data, "yesterday")


def test_a_servers_database_is_not_restored_here(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(commands.URL, "postgresql://localhost/feedback")
    with pytest.raises(commands.CommandError, match="pg_restore"):
        commands.restored(data, "x")


def test_pictures_that_were_deleted_since_come_back_from_the_stores_own_backup(data: Path):
    store = opened(data)
    id_ = rated(store, 1, 2)
    store.backup(data / "backups" / "whole")
    store.delete_image(id_)
    store.close()
    assert values(data) == []
    commands.restored(data, "whole")
    assert values(data) == [2]
    store = opened(data)
    assert store.image_pixels(id_).max() == 1
    store.close()


def test_it_runs_as_it_is_documented(data: Path, tmp_path: Path):
    """In ComfyUI's folder, with the pack among the custom nodes."""
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "feedback_loop").symlink_to(ROOT)
    command = [sys.executable, *commands.PROGRAM.split()[1:], "token", "add", "Ann"]
    environment = {name: value for name, value in os.environ.items() if name != commands.URL}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    store = opened(data)
    assert store.rater_of_token(done.stdout.strip()) == "Ann"
    store.close()
