"""ImageReward's JSON: for each prompt the files of its pictures and their ranks, 1 for the best, equal for a tie
(Xu et al. 2023). Here in a ZIP with the pictures.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

from ..marks import Ranking, Region, Tag, WordMark
from ..records import Comment, Comparison, Generation, Rating
from .archive import Documents, Sink
from .bundle import BadData, Bundle, Report, leave_kinds, leave_settings
from .guards import list_of, text

NAME = "imagereward.json"
RANKS = {"left": [1, 2], "right": [2, 1], "tie": [1, 1]}
WHY = "ImageReward holds the ranks of pictures only"


def write(bundle: Bundle, path: Path) -> Report:
    """Writes rankings, and comparisons as rankings of two."""
    report = Report()
    leave_kinds(report, bundle, (Rating, Region, WordMark, Tag, Comment), WHY)
    compared, ranked = bundle.of(Comparison), bundle.of(Ranking)
    items = [(one.image_ids, list(range(1, len(one.image_ids) + 1))) for one, _ in ranked]
    items += [((one.left, one.right), RANKS[one.winner]) for one, _ in compared if one.winner in RANKS]
    report.leave('comparisons: "both bad" and "skip" have no rank', sum(one.winner not in RANKS for one, _ in compared))
    report.leave(
        "rankings of two pictures: they come back as comparisons", sum(len(r.image_ids) == 2 for r, _ in ranked)
    )
    report.leave("judgements' rater, axis and time: there is no field for them", len(items))
    used = dict.fromkeys(key for keys, _ in items for key in keys)
    leave_settings(report, (bundle.pictures[key] for key in used), (), "there is no field for them")
    with Sink(path) as sink:
        files = {key: sink.picture(bundle.pictures[key]) for key in used}
        sink.json(NAME, [_item(bundle, n, keys, ranks, files, report) for n, (keys, ranks) in enumerate(items)])
    report.held.update(rankings=len(ranked), comparisons=len(items) - len(ranked), pictures=len(used))
    return report


def _item(
    bundle: Bundle, number: int, keys: tuple[str, ...], ranks: list[int], files: dict[str, str], report: Report
) -> dict[str, Any]:
    prompts = [bundle.pictures[key].generation.prompt for key in keys]
    report.leave("prompts of further pictures: an entry has one prompt, that of the first", len(set(prompts)) - 1)
    return {
        "id": f"{number:06d}",
        "prompt": prompts[0] or "",
        "generations": [files[key] for key in keys],
        "ranking": ranks,
    }


def recognises(documents: Documents) -> bool:
    """Whether a document has ImageReward's fields."""
    return any(True for _ in documents.lists("generations", "ranking"))


def read(documents: Documents, rater: str) -> Bundle:
    """Rankings where the ranks differ, else comparisons of all pairs. rater: who judged. Raises BadData."""
    bundle = Bundle()
    for name, items in documents.lists("generations", "ranking"):
        for n, item in enumerate(items):
            where = f"{name or 'The file'}, entry {n}"
            files = list_of(item, "generations", str, where)
            ranks = list_of(item, "ranking", (int, float), where)
            if len(files) != len(ranks) or len(files) < 2:
                raise BadData(f"{where}: generations and ranking must be of one length, 2 or more.")
            made = Generation(prompt=text(item, "prompt", where) or None)
            keys = [documents.picture(bundle, file, made, name) for file in files]
            say_ranks(bundle, keys, ranks, rater, where)
    return bundle


def say_ranks(bundle: Bundle, keys: list[str], ranks: list[Any], rater: str, where: str) -> None:
    """Ranks, low for good: a ranking of three or more different ones, else all pairs, equal ranks as ties."""
    if len(set(keys)) < len(keys):
        return bundle.report.leave("rankings: a picture appears twice in them")
    order = [key for _, key in sorted(zip(ranks, keys, strict=True), key=lambda pair: pair[0])]
    if len(keys) > 2 and len(set(ranks)) == len(ranks):
        return bundle.say(lambda: Ranking(tuple(order), rater), where)
    for (left, a), (right, b) in combinations(zip(keys, ranks, strict=True), 2):
        winner = "tie" if a == b else "left" if a < b else "right"
        bundle.say(lambda left=left, right=right, winner=winner: Comparison(left, right, winner, rater), where)
