"""A process that rates one picture again and again, and prints each id once the store has acknowledged it.

Started by tests, which kill it: `python writer_process.py DATABASE_URL MEDIA IMAGE_ID RATER COUNT`.
"""

import importlib.util
import itertools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location(
    "feedback_loop", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
)
assert spec and spec.loader
sys.modules["feedback_loop"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["feedback_loop"])

from feedback_loop.feedback.records import Rating  # noqa: E402
from feedback_loop.feedback.store import FeedbackStore  # noqa: E402


def main(database: str, media: str, image_id: str, rater: str, count: str) -> None:
    store = FeedbackStore(database, Path(media))
    for number in itertools.islice(itertools.count(), int(count) or None):
        rating = Rating(image_id, number % 5 + 1, f"{rater} {number}")
        sys.stdout.write(store.add_rating(rating) + "\n")
        sys.stdout.flush()
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
