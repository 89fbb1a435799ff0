"""Many writers, killed writers, and databases that are not as we left them."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from feedback_loop.feedback import database, tables
from feedback_loop.feedback.database import Database, DatabaseReadOnly, DatabaseUnusable, write_ahead_log_is_safe
from feedback_loop.feedback.records import Generation, NotFound, Rating
from feedback_loop.feedback.store import FeedbackStore

from .conftest import picture, writer


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """A file: what is peculiar to SQLite is here, what to servers in test_reliability_server."""
    return f"sqlite:///{tmp_path / 'feedback.sqlite3'}"


@pytest.fixture
def image(store: FeedbackStore) -> str:
    return store.add_image(picture(), Generation(), "c")


def rating_ids(store: FeedbackStore) -> list[str]:
    return [one.rating_id for one in store.rated(store.feedback())]


def test_threads_lose_nothing_and_double_nothing(store: FeedbackStore, image: str):
    def rate(number: int) -> str:
        return store.add_rating(Rating(image, number % 5 + 1, f"rater {number}"))

    with ThreadPoolExecutor(16) as threads:
        acknowledged = list(threads.map(rate, range(160)))
    assert sorted(rating_ids(store)) == sorted(acknowledged)
    assert store.revision() == 1 + 160, "one revision for each write"


def test_a_change_that_fails_takes_nobody_with_it(store: FeedbackStore, image: str):
    """Changes that wait together share a transaction; every other one here is refused."""

    def rate(number: int) -> bool:
        try:
            return bool(store.add_rating(Rating(image if number % 2 else "nope", 1, f"rater {number}")))
        except NotFound:
            return False

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(rate, range(64))) == [bool(number % 2) for number in range(64)]
    assert len(rating_ids(store)) == 32


def test_a_reader_sees_all_of_a_transaction_or_nothing(store: FeedbackStore, image: str):
    """Ratings are written in groups of ten, so every count of them is a multiple of ten."""
    done = threading.Event()
    counts: list[int] = []

    def count() -> None:
        while not done.is_set():
            counts.append(store.stats().ratings)

    reader = threading.Thread(target=count)
    reader.start()
    for turn in range(5):
        store.add_ratings([Rating(image, 1, f"rater {turn} {number}") for number in range(10)])
    done.set()
    reader.join()
    assert counts
    assert {count % 10 for count in counts} == {0}


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_no_acknowledged_rating_is_lost_when_its_writer_is_killed(
    store: FeedbackStore, image: str, database_url: str, tmp_path: Path
):
    acknowledged: list[str] = []
    processes = [writer(database_url, tmp_path, image, f"killed {turn}", 0) for turn in range(5)]
    for process in processes:
        assert process.stdout is not None
        for _ in range(3):
            acknowledged.append(process.stdout.readline().strip())
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += process.stdout.read().split()
        process.wait()
    assert all(acknowledged)
    assert len(acknowledged) >= 5 * 3
    assert set(acknowledged) <= set(rating_ids(store))
    with sqlite3.connect(tmp_path / "feedback.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_processes_on_one_file_lose_nothing_and_double_nothing(
    store: FeedbackStore, image: str, database_url: str, tmp_path: Path
):
    processes = [writer(database_url, tmp_path, image, f"process {n}", 15) for n in range(2)]
    mine = [store.add_rating(Rating(image, 1, f"here {n}")) for n in range(15)]
    theirs = [id_ for process in processes for id_ in process.communicate()[0].split()]
    assert len(theirs) == 30
    assert sorted(rating_ids(store)) == sorted(mine + theirs)
    assert store.revision() == 1 + 45


def _not_prompt_text(name: str | None, kind: str, _parents: object) -> bool:
    """Leaves out the index of texts, which each database has in its own way."""
    return not (kind == "table" and name is not None and name.startswith("prompt_text"))


def test_the_migrations_make_the_tables_that_the_code_uses(store: FeedbackStore, tmp_path: Path):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = create_engine(f"sqlite:///{tmp_path / 'feedback.sqlite3'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"compare_type": True, "version_table": tables.VERSION_TABLE, "include_name": _not_prompt_text},
        )
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()


def test_the_files_of_the_migrations_are_named_after_their_revisions():
    from alembic.script import ScriptDirectory

    scripts = list(ScriptDirectory(str(database.MIGRATIONS)).walk_revisions())
    assert [Path(script.path).name.split("_")[0] for script in scripts] == [script.revision for script in scripts]
    assert [script.revision for script in scripts] == sorted((script.revision for script in scripts), reverse=True)


LATEST = max(path.name[:4] for path in (database.MIGRATIONS / "versions").glob("[0-9]*.py"))
NEXT = f"{int(LATEST) + 1:04}"


@pytest.fixture
def newer_migrations(tmp_path: Path) -> Path:
    """The migrations as a later version of the pack might have them: one more."""
    folder = tmp_path / "migrations"
    shutil.copytree(database.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / f"{NEXT}_more.py").write_text(
        f"from alembic import op\nrevision = '{NEXT}'\ndown_revision = '{LATEST}'\n\n\n"
        "def upgrade():\n    op.execute('CREATE TABLE more (id TEXT)')\n"
    )
    return folder


def test_a_database_of_a_newer_version_can_be_read_and_says_why_it_is_not_written(
    open_store: Callable[[], FeedbackStore], newer_migrations: Path, tmp_path: Path
):
    store = open_store()
    image = store.add_image(picture(), Generation(), "c")
    store.close()
    Database(f"sqlite:///{tmp_path / 'feedback.sqlite3'}", newer_migrations).close()
    older = open_store()
    assert older.image(image).id == image
    assert older.read_only is not None and NEXT in older.read_only
    with pytest.raises(DatabaseReadOnly, match="newer version"):
        older.add_rating(Rating(image, 1, "me"))


def test_a_migration_leaves_a_backup_of_what_was_there(
    open_store: Callable[[], FeedbackStore], newer_migrations: Path, tmp_path: Path
):
    store = open_store()
    image = store.add_image(picture(), Generation(), "c")
    store.close()
    migrated = Database(f"sqlite:///{tmp_path / 'feedback.sqlite3'}", newer_migrations)
    assert migrated.read(lambda c: c.execute(text("SELECT count(*) FROM more")).scalar()) == 0
    migrated.close()
    (backup,) = tmp_path.glob(f"feedback-{LATEST}-*.backup")
    with sqlite3.connect(backup) as connection:
        assert connection.execute("SELECT id FROM image").fetchall() == [(image,)]
        assert connection.execute("SELECT version_num FROM feedback_loop_version").fetchall() == [(LATEST,)]


def test_a_migration_that_fails_leaves_the_database_as_it_was(
    open_store: Callable[[], FeedbackStore], newer_migrations: Path, tmp_path: Path
):
    open_store().close()
    broken = newer_migrations / "versions" / f"{NEXT}_more.py"
    broken.write_text(broken.read_text() + "    op.execute('SELECT no_such_function()')\n")
    with pytest.raises(DatabaseUnusable):
        Database(f"sqlite:///{tmp_path / 'feedback.sqlite3'}", newer_migrations)
    again = open_store()
    assert again.read_only is None
    assert again.stats().images == 0


def test_a_file_that_is_no_database_is_named_with_a_way_out(tmp_path: Path):
    broken = tmp_path / "broken.sqlite3"
    broken.write_bytes(b"not a database, " * 100)
    with pytest.raises(DatabaseUnusable, match=r"broken\.sqlite3.*backup"):
        FeedbackStore(f"sqlite:///{broken}", tmp_path / "media")
    assert broken.read_bytes() == b"not a database, " * 100


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mysql://me:secret@host/db", "postgresql://me:secret@host:nan/db"]
)
def test_a_database_that_can_not_be_used_is_refused_without_telling_the_password(url: str, tmp_path: Path):
    with pytest.raises(DatabaseUnusable) as refused:
        FeedbackStore(url, tmp_path)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), True),
        ((4, 0, 0), True),
    ],
)
def test_the_write_ahead_log_is_used_only_where_its_reset_bug_is_fixed(version: tuple[int, ...], safe: bool):
    assert write_ahead_log_is_safe(version) is safe


def test_the_connection_that_writes_is_set_up_to_lose_nothing(store: FeedbackStore):
    """synchronous 2 is FULL; foreign keys are off in SQLite unless asked for."""

    def pragma(name: str) -> object:
        return store._database.write(lambda c: c.exec_driver_sql(f"PRAGMA {name}").scalar())

    assert pragma("synchronous") == 2
    assert pragma("foreign_keys") == 1
    expected = "wal" if write_ahead_log_is_safe(sqlite3.sqlite_version_info) else "truncate"
    assert pragma("journal_mode") == expected


def test_a_full_disk_is_told_in_a_sentence_loses_nothing_and_is_over_when_there_is_room(
    store: FeedbackStore, image: str
):
    """The database may not grow by one page, which is how a full disk looks to SQLite."""

    def limit(pages: str) -> int:
        return store._database.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}").scalar_one())

    before = [store.add_rating(Rating(image, 1, "me"))]
    pages = store._database.write(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())
    limit(str(pages))
    with pytest.raises(DatabaseUnusable, match="full.*disk has room"):
        for number in range(1000):
            before.append(store.add_rating(Rating(image, 1, f"{number}", comment="x" * 5000)))
    assert sorted(rating_ids(store)) == sorted(before)
    limit("1000000")
    before.append(store.add_rating(Rating(image, 1, "you")))
    assert sorted(rating_ids(store)) == sorted(before)


@pytest.mark.skipif(os.name != "posix", reason="an open file can't be removed")
@pytest.mark.parametrize("replaced", [False, True])
def test_a_database_that_was_removed_while_open_takes_nothing_that_would_be_lost(
    store: FeedbackStore, image: str, tmp_path: Path, replaced: bool
):
    file = tmp_path / "feedback.sqlite3"
    file.rename(tmp_path / "moved.sqlite3")
    if replaced:
        shutil.copyfile(tmp_path / "moved.sqlite3", file)
    with pytest.raises(DatabaseUnusable, match="removed or replaced"):
        store.add_rating(Rating(image, 1, "me"))
    (tmp_path / "moved.sqlite3").replace(file)
    assert [store.add_rating(Rating(image, 1, "me"))] == rating_ids(store)


def test_closing_finishes_what_was_asked_for(open_store: Callable[[], FeedbackStore]):
    store = open_store()
    image = store.add_image(picture(), Generation(), "c")
    with ThreadPoolExecutor(8) as threads:
        written = [threads.submit(store.add_rating, Rating(image, 1, f"rater {n}")) for n in range(8)]
        ids = [future.result() for future in written]
    store.close()
    assert sorted(rating_ids(open_store())) == sorted(ids)
