"""Routes about the store as a whole: counts and how far they go, pruning, backups, who is asking."""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ..feedback.records import ModelRun
from . import request_models as models
from . import request_queries as queries
from .request_rules import Refused
from .routes_answers import ROOT, Store, answered, body, door_of, on_thread
from .team import rater_of

if TYPE_CHECKING:
    from ..feedback.results import RaterReliability
    from ..feedback.store import FeedbackStore

USABLE = 100  # judgements from which a first reward tends to beat chance
MAX_BACKUPS = 50
COUNT_AGAIN = 60  # seconds for which the sizes on disk are believed


def data_folder() -> Path:
    from .compat import data_directory

    return data_directory()


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    disk = Disk()

    @routes.get(f"{ROOT}/stats")
    @answered
    async def stats(request: web.Request) -> web.Response:
        queries.query(queries.NoQuery, request)
        return web.json_response(await on_thread(lambda: counted_now(store(), disk.sizes())))

    @routes.get(f"{ROOT}/me")
    @answered
    async def me(request: web.Request) -> web.Response:
        queries.query(queries.NoQuery, request)
        return web.json_response({"team": door_of(request).team, "rater": rater_of(request)})

    @routes.post(f"{ROOT}/prune")
    @answered
    async def prune(request: web.Request) -> web.Response:
        await body(request, models.EmptyBody)
        freed = await on_thread(lambda: store().prune())
        passing = await on_thread(prune_runs)
        disk.forget()
        return web.json_response(asdict(freed) | {"bytes": freed.bytes + passing})

    @routes.post(f"{ROOT}/backup")
    @answered
    async def backup(request: web.Request) -> web.Response:
        await body(request, models.EmptyBody)
        made = await on_thread(lambda: back_up(store(), data_folder() / "backups"))
        disk.forget()
        return web.json_response({"name": made.name, "bytes": size_of(made)})


def prune_runs() -> int:
    """Bytes freed of what finished trainings drew and no unfinished one can go on with: those whose LoRA is there. What
    people rated of it is in the store, and stays."""
    import folder_paths

    from ..training.runs import tidy_finished

    folders = [Path(folder) for folder in folder_paths.get_folder_paths("loras")]
    return tidy_finished(
        data_folder() / "runs", lambda name: any((folder / f"{name}.safetensors").is_file() for folder in folders)
    )


def back_up(store: FeedbackStore, folder: Path) -> Path:
    """Writes a backup under a name that says when, and that nobody can guess. Raises Refused when there are many."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.iterdir())) >= MAX_BACKUPS:
        raise Refused(409, f"There are {MAX_BACKUPS} backups already; delete old ones from the folder backups first.")
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    target = folder / f"feedback-{now}-{secrets.token_hex(4)}"
    store.backup(target)
    return target


def size_of(path: Path, seen: set[tuple[int, int]] | None = None) -> int:
    """Bytes of a file, or of all files in and below a folder; what vanishes meanwhile is left out.

    A backup names pictures a second time, which takes no space: a file that is in `seen` is not counted again.
    """
    seen = set() if seen is None else seen
    files = (
        [path] if not path.is_dir() else (Path(parent, name) for parent, _, names in os.walk(path) for name in names)
    )
    total = 0
    for file in files:
        try:
            found = file.lstat()
        except FileNotFoundError:
            continue
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            total += found.st_size
    return total


class Disk:
    """What the data folder takes, by its parts. Counting a hundred thousand files takes a second, so it is kept."""

    def __init__(self) -> None:
        self._counted: tuple[float, dict[str, int]] | None = None

    def forget(self) -> None:
        self._counted = None

    def sizes(self) -> dict[str, int]:
        """Bytes of "pictures", "database", "backups" and the like."""
        if self._counted is None or time.monotonic() - self._counted[0] > COUNT_AGAIN:
            self._counted = time.monotonic(), _sizes(data_folder())
        return self._counted[1]


def _sizes(folder: Path) -> dict[str, int]:
    sizes, seen = Counter({"pictures": 0, "database": 0, "backups": 0}), set[tuple[int, int]]()
    for path in sorted(folder.iterdir(), key=lambda path: path.name != "media") if folder.is_dir() else ():
        part = {"media": "pictures", "backups": "backups"}.get(path.name)
        name = part or ("backups" if path.suffix == ".backup" else "database" if "sqlite" in path.name else "other")
        sizes[name] += size_of(path, seen)
    return dict(sizes)


def counted_now(store: FeedbackStore, disk: dict[str, int]) -> dict[str, Any]:
    """See `counted`. Raises Refused, with what is known here, while a database server is away."""
    from ..feedback.engines import DatabaseUnreachable

    try:
        return counted(store, disk)
    except DatabaseUnreachable as error:
        waiting = f"{store.waiting} judgements wait on this machine's disk until it does." if store.waiting else ""
        raise Refused(503, f"{error} {waiting}".strip()) from error


def counted(store: FeedbackStore, disk: dict[str, int]) -> dict[str, Any]:
    """What `stats` answers."""
    stats, reliability, run = store.stats(), store.reliability(), store.latest_run("taste")
    return {
        **asdict(stats),
        "bytes": sum(disk.values()),
        "disk": disk,
        "waiting": store.waiting,
        "reliability": [asdict(rater) for rater in reliability],
        **agreement(reliability),
        **progress(stats.ratings + stats.comparisons, run),
    }


def agreement(reliability: list[RaterReliability]) -> dict[str, float | None]:
    """How often all raters repeat their own answer, and what that leaves for a model that guesses single answers."""
    known = [(one.self_agreement, one.repeats) for one in reliability if one.self_agreement is not None]
    repeats = sum(count for _, count in known)
    if not repeats:
        return {"self_agreement": None, "bound": None}
    rate = sum(share * count for share, count in known) / repeats
    return {"self_agreement": rate, "bound": (1 + max(0.0, 2 * rate - 1) ** 0.5) / 2}


def progress(judged: int, run: ModelRun | None) -> dict[str, Any]:
    """How good the latest reward is, and how many more judgements one that beats chance may take.

    Accuracy grows about as the square root of the judgements, so a reward that has not beaten chance needs twice as
    many as it had.
    """
    if run is None:
        return {"held_out_accuracy": None, "beats_chance": None, "ratings_needed": max(0, USABLE - judged)}
    accuracy, low, _ = run.metrics.get("held_out") or (None, 0.0, None)
    beats = bool(low and low > 0.5)
    had = run.metrics.get("stars", 0) + run.metrics.get("choices", 0)
    return {
        "held_out_accuracy": accuracy,
        "beats_chance": beats,
        "ratings_needed": 0 if beats else max(0, max(USABLE, 2 * had) - judged),
    }
