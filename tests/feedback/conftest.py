"""A store in a temporary folder, on SQLite and on PostgreSQL, and pictures to put into it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from feedback_loop.feedback.database import Database
from feedback_loop.feedback.store import FeedbackStore

from . import postgres

WRITER = Path(__file__).with_name("writer_process.py")
NUMBER = itertools.count()
TEMPLATE = "feedback_template"


def picture(seed: int = 0, size: int = 16, channels: int = 3) -> np.ndarray:
    """Noise (size, size + 3, channels), uint8: another seed, other pixels."""
    return np.random.default_rng(seed).integers(0, 256, (size, size + 3, channels), dtype=np.uint8)


def writer(url: str, folder: Path, image: str, rater: str, count: int, **environment: str) -> subprocess.Popen[str]:
    """A process that rates the picture `count` times, 0 for without end, and prints what was acknowledged."""
    command = [sys.executable, str(WRITER), url, str(folder / "media"), image, rater, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})


class Writers:
    """Processes that rate one picture without end, quickly started by one that has imported everything."""

    def __init__(self, url: str, folder: Path, image: str) -> None:
        command = [sys.executable, str(WRITER), "fork", url, str(folder / "media"), image]
        self._folder = folder
        self._parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def killed(self, rater: str, after: int) -> list[str]:
        """What a process had acknowledged when it was killed, which it is after `after` times or a little later."""
        assert self._parent.stdin is not None and self._parent.stdout is not None
        file = self._folder / f"{rater}.txt"
        self._parent.stdin.write(f"{rater} 0 {file}\n")
        self._parent.stdin.flush()
        pid = int(self._parent.stdout.readline())
        while not file.exists() or file.read_text().count("\n") < after:
            assert _runs(pid), "the writer ended by itself"
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        while _runs(pid):
            time.sleep(0.005)
        return file.read_text().split("\n")[:-1]

    def close(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """A server whose template has our tables, so that a new database takes no migration."""
    if (why := postgres.missing()) is not None:
        pytest.skip(why)
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    server = postgres.Server()
    try:
        server.execute(f"CREATE DATABASE {TEMPLATE}")
        Database(server.url(TEMPLATE)).close()
        yield server
    finally:
        server.close()


def new_database(server: postgres.Server) -> str:
    """The URL of a database with our tables and nothing in them."""
    name = f"feedback_{next(NUMBER)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    return server.url(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The whole suite of the store runs on both; a test of one alone is marked with `sqlite_only`."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'feedback.sqlite3'}"
    return new_database(request.getfixturevalue("postgres_server"))


sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
postgresql_only = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def open_store(database_url: str, tmp_path: Path) -> Iterator[Callable[[], FeedbackStore]]:
    """Opens the same database again and again; all are closed at the end."""
    opened: list[FeedbackStore] = []

    def opening() -> FeedbackStore:
        opened.append(FeedbackStore(database_url, tmp_path / "media"))
        return opened[-1]

    yield opening
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], FeedbackStore]) -> FeedbackStore:
    return open_store()
