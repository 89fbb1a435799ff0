"""A process that rates one picture again and again, and prints each id once the store has acknowledged it.

With FILE_SIZE_LIMIT in the environment no file may grow beyond it, and the store's refusal is printed and the end.

Started by tests, which kill it: `python writer_process.py DATABASE_URL MEDIA IMAGE_ID RATER COUNT`.
"""

import importlib.util
import itertools
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location(
    "feedback_loop", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
)
assert spec and spec.loader
sys.modules["feedback_loop"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["feedback_loop"])

from feedback_loop.feedback.database import DatabaseUnusable  # noqa: E402
from feedback_loop.feedback.records import Rating  # noqa: E402
from feedback_loop.feedback.store import FeedbackStore  # noqa: E402


def limit_file_size() -> None:
    if limit := os.environ.get("FILE_SIZE_LIMIT"):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))


def main(database: str, media: str, image_id: str, rater: str, count: str) -> None:
    store = FeedbackStore(database, Path(media))
    limit_file_size()
    for number in itertools.islice(itertools.count(), int(count) or None):
        rating = Rating(image_id, number % 5 + 1, f"{rater} {number}")
        try:
            sys.stdout.write(store.add_rating(rating) + "\n")
        except DatabaseUnusable as error:
            sys.stdout.write(f"refused: {error}\n")
            break
        sys.stdout.flush()
    store.close()


def fork(database: str, media: str, image_id: str) -> None:
    """For each line "RATER COUNT FILE" of stdin, starts a process that writes what is acknowledged into FILE.

    Prints the process's number. Starting one takes milliseconds, because everything is imported already.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that end
    for line in sys.stdin:
        rater, count, file = line.split()
        if pid := os.fork():
            sys.stdout.write(f"{pid}\n")
            sys.stdout.flush()
            continue
        sys.stdout = open(file, "w", encoding="ascii")
        main(database, media, image_id, rater, count)
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "fork":
        fork(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
