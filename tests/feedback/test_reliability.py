"""Killed, crowded, full, read-only and broken: what was acknowledged is there, once, and messages say what to do."""

from __future__ import annotations

import math
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from feedback_loop.feedback.database import DatabaseReadOnly, DatabaseUnusable
from feedback_loop.feedback.marks import Interaction, Ranking, Region, Tag, WordMark
from feedback_loop.feedback.records import Comment, Comparison, Generation, InvalidRecord, NotFound, Rating
from feedback_loop.feedback.results import ImageFilter
from feedback_loop.feedback.store import FeedbackStore

from .conftest import Writers, picture, sqlite_only, writer

LONG = pytest.mark.long
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs signals and permissions of POSIX")


@pytest.fixture
def image(store: FeedbackStore) -> str:
    return store.add_image(picture(), Generation(prompt="a red circle"), "c")


def stored(store: FeedbackStore) -> list[str]:
    return [one.rating_id for one in store.rated(store.feedback())]


def check_whole(store: FeedbackStore, acknowledged: list[str]) -> None:
    """Everything acknowledged is there, nothing is twice, and the counts that are kept say what is there."""
    found = stored(store)
    assert set(acknowledged) <= set(found)
    assert len(set(acknowledged)) == len(acknowledged)
    assert len(set(found)) == len(found)
    before = store.stats()
    assert before.ratings == len(found)
    store.rebuild()
    assert store.stats() == before


@POSIX
@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=[LONG, pytest.mark.timeout(7200)])])
def test_no_acknowledged_rating_is_lost_however_often_its_writer_is_killed(
    store: FeedbackStore, image: str, database_url: str, tmp_path: Path, kills: int
):
    """Another one writes at the same time, so that some are killed while they wait for their turn."""
    chance, acknowledged = random.Random(kills), []
    beside, writers = writer(database_url, tmp_path, image, "beside", 0), Writers(database_url, tmp_path, image)
    try:
        for number in range(kills):
            acknowledged += writers.killed(f"killed-{number}", chance.randint(1, 5))
    finally:
        writers.close()
        beside.kill()
    assert beside.stdout is not None
    acknowledged += beside.stdout.read().split()
    beside.wait()
    assert len(acknowledged) >= kills
    check_whole(store, acknowledged)


MANY = pytest.param(1000, 100, marks=[LONG, pytest.mark.timeout(7200)])


@pytest.mark.parametrize(("each", "pictures"), [(8, 1), MANY])
def test_32_threads_lose_nothing_and_double_nothing(store: FeedbackStore, each: int, pictures: int):
    """On one picture, where they are in each other's way most; a thousand each on a hundred: a picture's counts are
    counted anew from all that was said of it, so 32,000 people on one would be a test of patience."""
    images = [store.add_image(picture(), Generation(prompt="a red circle", seed=str(n)), "c") for n in range(pictures)]

    def rate(thread: int) -> list[str]:
        return [
            store.add_rating(Rating(images[turn % pictures], turn % 5 + 1, f"{thread} {turn}")) for turn in range(each)
        ]

    with ThreadPoolExecutor(32) as threads:
        acknowledged = [id_ for ids in threads.map(rate, range(32)) for id_ in ids]
    assert sorted(stored(store)) == sorted(acknowledged)
    assert store.revision() == pictures + 32 * each, "one revision for each write"
    check_whole(store, acknowledged)


@pytest.mark.parametrize("each", [25, pytest.param(1000, marks=[LONG, pytest.mark.timeout(7200)])])
def test_4_processes_lose_nothing_and_double_nothing(
    store: FeedbackStore, image: str, database_url: str, tmp_path: Path, each: int
):
    processes = [writer(database_url, tmp_path, image, f"process {number}", each) for number in range(4)]
    acknowledged = [id_ for process in processes for id_ in process.communicate()[0].split()]
    assert len(acknowledged) == 4 * each
    assert sorted(stored(store)) == sorted(acknowledged)
    assert store.revision() == 1 + 4 * each
    check_whole(store, acknowledged)


def test_two_stores_on_one_database_see_what_the_other_wrote(open_store: Callable[[], FeedbackStore]):
    """As two ComfyUIs on one file or server do."""
    one, other = open_store(), open_store()
    image = one.add_image(picture(), Generation(), "c")
    first = other.add_rating(Rating(image, 1, "me"))
    second = one.add_rating(Rating(image, 5, "me"))
    assert other.image(image).ratings[0].value == 1.0
    assert stored(one) == stored(other) == [second]
    one.undo(second)
    assert stored(other) == [first]
    one.close()
    assert other.add_rating(Rating(image, 3, "you")) in stored(other)


# What no database may be trusted with

ODD = ("a\0b", "\ud800", "b\udfff")
ID = "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_before_any_database_sees_them(
    store: FeedbackStore, image: str, number: float
):
    attempts: list[Callable[[], object]] = [
        lambda: Rating(image, number, "me"),
        lambda: Rating(image, 1, "me", lead_time=number),
        lambda: Comparison(image, ID, "left", "me", strength=number),
        lambda: Ranking((image, ID), "me", lead_time=number),
        lambda: Region(image, "point", ((number, 0.5),), "artifact", "me"),
        lambda: Region(image, "point", ((0.5, 0.5),), "artifact", "me", severity=number),
        lambda: store.add_embedding(image, "encoder", np.array([0.0, number], np.float32)),
        lambda: store.add_watermark_scores({image: number}),
    ]
    before = store.revision()
    for attempt in attempts:
        with pytest.raises(InvalidRecord):
            attempt()
    assert store.revision() == before


@pytest.mark.parametrize("text", ODD)
def test_text_that_the_databases_disagree_on_is_refused_before_any_sees_it(store: FeedbackStore, image: str, text: str):
    attempts: list[Callable[[], object]] = [
        lambda: Rating(image, 1, text),
        lambda: Rating(image, 1, "me", axis=text),
        lambda: Rating(image, 1, "me", comment=text),
        lambda: Comment(image, text, "me"),
        lambda: Tag(image, text, "me"),
        lambda: WordMark(image, 0, text, "good", "me"),
        lambda: Region(image, "point", ((0.5, 0.5),), text, "me"),
        lambda: Interaction("saved", image, text),
        lambda: store.add_image(picture(1), Generation(), text),
        lambda: store.add_image(picture(1), Generation(prompt=text), "c"),
        lambda: store.add_embedding(image, text, np.zeros(2, np.float32)),
        lambda: store.add_token(text),
    ]
    before = store.revision()
    for attempt in attempts:
        with pytest.raises(InvalidRecord):
            attempt()
    assert store.revision() == before


@pytest.mark.parametrize("text", ODD)
def test_questions_with_such_text_are_answered_alike(store: FeedbackStore, image: str, text: str):
    """Nothing can be found by what nothing can be called."""
    for ask in (
        lambda: store.image(text),
        lambda: store.add_rating(Rating(text, 1, "me")),
        lambda: store.undo(text),
        lambda: store.delete_image(text),
        lambda: store.search(ImageFilter(text)),
        lambda: store.search(ImageFilter(rater=text)),
        lambda: store.search(ImageFilter(axis=text, rated=True)),
        lambda: store.next_pair("learn", text),
        lambda: store.rater_of_token(text),
    ):
        try:
            found = ask()
        except (NotFound, InvalidRecord):
            continue
        assert found is None or not found.items, found


# Disks


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 3 MB, which only root may make, and not everywhere."""
    folder = Path(tempfile.mkdtemp(prefix="feedback_loop_disk_"))
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True
        ).returncode
    )
    try:
        if not mounted:
            pytest.skip("no disk can be mounted here; test_a_file_that_may_not_grow does what can be done without")
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


@POSIX
def test_a_full_disk_loses_nothing_and_is_over_when_there_is_room(small_disk: Path):
    """32 write at once when it fills up, so that some share the transaction that the disk ends."""
    (small_disk / "ballast").write_bytes(b"0" * 2**20)
    store = FeedbackStore(f"sqlite:///{small_disk / 'feedback.sqlite3'}", small_disk / "media")
    image = store.add_image(picture(), Generation(), "c")

    def rate_until_full(thread: int) -> tuple[list[str], str]:
        ids: list[str] = []
        try:
            for turn in range(1000):
                ids.append(store.add_rating(Rating(image, 1, f"{thread} {turn}", comment="x" * 5000)))
        except DatabaseUnusable as error:
            return ids, str(error)
        return ids, "never full"

    with ThreadPoolExecutor(32) as threads:
        outcomes = list(threads.map(rate_until_full, range(32)))
    acknowledged = [id_ for ids, _ in outcomes for id_ in ids]
    assert acknowledged
    assert all("disk has room" in message for _, message in outcomes), {message for _, message in outcomes}
    assert sorted(stored(store)) == sorted(acknowledged)
    (small_disk / "ballast").unlink()
    acknowledged += [store.add_rating(Rating(image, 2, f"later {turn}")) for turn in range(10)]
    check_whole(store, acknowledged)
    store.close()


@POSIX
@sqlite_only
def test_a_file_that_may_not_grow_loses_nothing(store: FeedbackStore, image: str, database_url: str, tmp_path: Path):
    """RLIMIT_FSIZE is to the writing process what a full disk is; the next process has room."""
    file = tmp_path / "feedback.sqlite3"
    limit = file.stat().st_size + 200_000
    process = writer(database_url, tmp_path, image, "limited", 0, FILE_SIZE_LIMIT=str(limit))
    *acknowledged, refused = process.communicate()[0].strip().split("\n")
    assert acknowledged
    assert "refused" in refused
    assert "disk has room" in refused
    assert sorted(stored(store)) == sorted(acknowledged)
    acknowledged.append(store.add_rating(Rating(image, 2, "me")))
    check_whole(store, acknowledged)


@pytest.fixture
def kept_from_writing() -> Iterator[Path]:
    """A folder with a database that this process may read and not write to; root gives its rights up meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="feedback_loop_read_only_"))
    store = FeedbackStore(f"sqlite:///{folder / 'feedback.sqlite3'}", folder / "media")
    store.add_rating(Rating(store.add_image(picture(), Generation(), "c"), 1, "me"))
    store.close()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if was_root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        shutil.rmtree(folder)


@POSIX
def test_a_folder_that_can_not_be_written_to_is_read_and_says_why_it_is_not_written(kept_from_writing: Path):
    store = FeedbackStore(f"sqlite:///{kept_from_writing / 'feedback.sqlite3'}", kept_from_writing / "media")
    assert store.read_only is not None
    assert str(kept_from_writing) in store.read_only
    (image,) = store.search(ImageFilter()).items
    assert image.ratings[0].raw == 1
    with pytest.raises(DatabaseReadOnly, match="Make both writable"):
        store.add_rating(Rating(image.id, 2, "me"))
    store.close()
    with pytest.raises(DatabaseUnusable, match="Make it writable"):
        FeedbackStore(f"sqlite:///{kept_from_writing / 'new.sqlite3'}", kept_from_writing / "media")
    with pytest.raises(DatabaseUnusable, match="can't be made"):
        FeedbackStore(f"sqlite:///{kept_from_writing / 'sub' / 'new.sqlite3'}", kept_from_writing / "media")


# Broken files


@sqlite_only
def test_a_database_broken_in_the_middle_is_told_kept_and_comes_back_from_its_backup(
    open_store: Callable[[], FeedbackStore], tmp_path: Path
):
    """Every page but the first is overwritten, as by a disk that fails."""
    store = open_store()
    image = store.add_image(picture(), Generation(), "c")
    rating = store.add_rating(Rating(image, 1, "me"))
    store.backup(tmp_path / "backups" / "one")
    store.close()
    file = tmp_path / "feedback.sqlite3"
    broken = file.read_bytes()[:4096] + b"\xff" * (file.stat().st_size - 4096)
    file.write_bytes(broken)
    with pytest.raises(DatabaseUnusable, match="malformed.*move the file away, and put a backup in its place"):
        open_store()
    assert file.read_bytes() == broken, "whoever can mend it finds what there was"
    file.rename(tmp_path / "broken.sqlite3")
    shutil.copyfile(tmp_path / "backups" / "one" / "feedback.sqlite3", file)
    assert stored(open_store()) == [rating]


@sqlite_only
def test_a_database_that_breaks_while_open_says_how_to_restore_it(store: FeedbackStore, image: str, tmp_path: Path):
    store.add_ratings([Rating(image, 1, f"rater {number}", comment="x" * 1000) for number in range(200)])
    file = tmp_path / "feedback.sqlite3"
    size = file.stat().st_size
    with file.open("r+b") as broken:
        broken.seek(4096)
        broken.write(b"\xff" * (size - 4096))
    with sqlite3.connect(file) as connection:  # so that what is in memory is not believed any more
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(DatabaseUnusable, match="put a backup in its place"):
        store.rated(store.feedback())
