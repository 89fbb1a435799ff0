"""A store in a temporary folder, on SQLite and on PostgreSQL, and pictures to put into it."""

from __future__ import annotations

import itertools
import subprocess
import sys
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


def writer(url: str, folder: Path, image: str, rater: str, count: int) -> subprocess.Popen[str]:
    """A process that rates the picture `count` times, 0 for without end, and prints what was acknowledged."""
    arguments = [url, str(folder / "media"), image, rater, str(count)]
    return subprocess.Popen([sys.executable, str(WRITER), *arguments], stdout=subprocess.PIPE, text=True)


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
