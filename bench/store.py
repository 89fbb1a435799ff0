"""What the feedback store takes: writes per second, acknowledgements, lists, pairs, counts, and ComfyUI's event loop.

    python bench/store.py [--images 10000] [--judgements 50000] [--databases sqlite postgresql] [--folder DIR]
    python bench/store.py --stalls --comfyui DIR [--seconds 60]

--images 1000000 --judgements 5000000 is the full size: about 4 GB for each database and, on two cores, some minutes to
fill. With --folder a filled database stays there and is taken again. PostgreSQL is started from the system's binaries,
with fsync on. Goals at full size: acknowledgement under 250 ms at p99 with 32 writers, each query under 200 ms; the
event loop held up for less than 50 ms at p99.9, and at most 20 ms longer than the idle server's worst.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import tests.conftest  # noqa: E402, F401 - makes the checkout importable as feedback_loop
from feedback_loop.feedback.database import Database  # noqa: E402
from feedback_loop.feedback.engines import engine, parsed_url  # noqa: E402
from feedback_loop.feedback.records import Rating  # noqa: E402
from feedback_loop.feedback.results import ImageFilter  # noqa: E402
from feedback_loop.feedback.store import FeedbackStore  # noqa: E402
from tests.feedback import postgres  # noqa: E402

ACKNOWLEDGED, ANSWERED = 0.25, 0.2  # seconds, the goals


def say(text: str) -> None:
    print(text, flush=True)


def share(times: list[float], part: float) -> float:
    """The time that `part` of them do not exceed."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def verdict(value: float, goal: float) -> str:
    return "ok" if value < goal else f"MISSED, goal {1000 * goal:.0f} ms"


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def machine(folder: Path) -> str:
    """How busy the machine is with other work, which makes everything here slower."""
    began, computed = time.perf_counter(), time.process_time()
    while time.process_time() - computed < 0.5:
        pass
    slower = (time.perf_counter() - began) / 0.5
    with (folder / "sync").open("wb", buffering=0) as file:
        synced = [timed(lambda: (file.write(bytes(8192)), os.fsync(file.fileno()))) for _ in range(200)]
    (folder / "sync").unlink()
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    return (
        f"  machine: {load}, computing takes {slower:.1f} times as long as alone, "
        f"fsync p50 {1000 * share(synced, 0.5):.1f} ms, p99 {1000 * share(synced, 0.99):.1f} ms"
    )


def writes(store: FeedbackStore, images: list[str], writers: int, count: int) -> None:
    """Each writer rates one picture after the other, and waits for each acknowledgement."""

    def one(number: int) -> list[float]:
        chosen = images[number::writers] or images
        ratings = [Rating(chosen[turn % len(chosen)], turn % 5 + 1, f"writer {number}") for turn in range(count)]
        return [timed(lambda rating=rating: store.add_rating(rating)) for rating in ratings]

    began = time.perf_counter()
    with ThreadPoolExecutor(writers) as threads:
        times = [seconds for some in threads.map(one, range(writers)) for seconds in some]
    rate, p50, p99 = len(times) / (time.perf_counter() - began), share(times, 0.5), share(times, 0.99)
    say(
        f"  {writers:2} writers: {rate:6.0f} writes/s, acknowledged p50 {1000 * p50:6.1f} ms, "
        f"p99 {1000 * p99:6.1f} ms  {verdict(p99, ACKNOWLEDGED)}"
    )


def queries(store: FeedbackStore, repeats: int) -> None:
    """The slowest of each is what counts; the first is left out, which opens the connection."""
    page = store.search(ImageFilter())
    asked: dict[str, Callable[[], object]] = {
        "list, newest": lambda: store.search(ImageFilter()),
        "list, next page": lambda: store.search(ImageFilter(), cursor=page.next),
        "list, unrated of a collection": lambda: store.search(ImageFilter("c3", rated=False)),
        "list, best": lambda: store.search(ImageFilter(), "best"),
        "list, worst of a collection": lambda: store.search(ImageFilter("c5"), "worst"),
        "list, one rater's best": lambda: store.search(ImageFilter(rater="rater 3"), "best"),
        "list, two words": lambda: store.search(ImageFilter(text="moon sea")),
        "list, a rare word": lambda: store.search(ImageFilter(text="n17")),
        "list, two words, best": lambda: store.search(ImageFilter(text="moon sea"), "best"),
        "list, a first letter": lambda: store.search(ImageFilter(text="n")),
        "list, surest watermarks": lambda: store.search(ImageFilter(min_watermark=0.9), "watermark"),
        "pair, to learn": lambda: store.next_pair("learn", None, "overall", "rater 3"),
        "pair, to train, of a collection": lambda: store.next_pair("train", "c5", "overall", "rater 3"),
        "count": store.stats,
        "count, reliability": store.reliability,
    }
    for name, ask in asked.items():
        ask()
        times = [timed(ask) for _ in range(repeats)]
        middle, worst = 1000 * statistics.median(times), max(times)
        say(f"  {name:32} p50 {middle:6.1f} ms, worst {1000 * worst:6.1f} ms  {verdict(worst, ANSWERED)}")


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a database in `folder`, or of a server that runs meanwhile."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'feedback.sqlite3'}"
        return
    kept = folder / "postgresql"
    server = postgres.Server(fsync=True, folder=kept)
    try:
        yield server.url()
    finally:
        server.stop("fast")


def filled(url: str, images: int, judgements: int) -> None:
    from store_fill import fill

    base = Database(url)
    found = base.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM tally").scalar_one())
    base.close()
    if found:
        say("  (filled before)")
        return
    raw = parsed_url(url)
    from sqlalchemy import create_engine

    writer = create_engine(raw)
    try:
        fill(writer, images, judgements, lambda text: say(f"  filled with {text}"))
    finally:
        writer.dispose()


def measure(kind: str, folder: Path, images: int, judgements: int, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with database(kind, folder) as url:
        say(f"{kind}, {images:,} images, {judgements:,} judgements")
        filled(url, images, judgements)
        store = FeedbackStore(url, folder / "media")
        reader = engine(parsed_url(url), writes=False)
        from store_fill import picture_ids

        with reader.connect() as connection:
            some = picture_ids(connection, 5000)
        reader.dispose()
        say(machine(folder))
        queries(store, 20)
        say(machine(folder))
        writes(store, some, 1, count)
        writes(store, some, 32, max(1, count // 8))
        store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--judgements", type=int, default=50_000)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--writes", type=int, default=400, help="of one writer; each of 32 makes an eighth")
    parser.add_argument("--stalls", action="store_true")
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    asked = parser.parse_args()
    if asked.stalls:
        import stalls

        with tempfile.TemporaryDirectory() as folder:
            say(machine(Path(folder)))
        stalls.measure(asked.comfyui, asked.seconds, say)
        return
    for kind in asked.databases:
        if kind == "postgresql" and (why := postgres.missing()) is not None:
            say(f"postgresql: left out, {why}")
            continue
        with tempfile.TemporaryDirectory() as fresh:
            Path(fresh).chmod(0o755)  # PostgreSQL may run as another user
            folder = asked.folder or Path(fresh)
            measure(kind, folder / kind, asked.images, asked.judgements, asked.writes)


if __name__ == "__main__":
    main()
