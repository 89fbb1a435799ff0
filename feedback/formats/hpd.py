"""HPDv2's JSON (Wu et al. 2023): its training part holds pairs, its test part rankings. In a ZIP with the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..marks import Ranking, Region, Tag, WordMark
from ..records import Comment, Comparison, Generation, Rating
from .archive import Documents, Sink
from .bundle import BadData, Bundle, Report, leave_kinds, leave_settings
from .guards import list_of, text
from .imagereward import say_ranks

WHY = "HPDv2 holds pairs and rankings only"


def write(bundle: Bundle, path: Path) -> Report:
    """Writes comparisons with a winner into train.json, rankings into test.json."""
    report = Report()
    leave_kinds(report, bundle, (Rating, Region, WordMark, Tag, Comment), WHY)
    compared, ranked = [one for one, _ in bundle.of(Comparison)], [one for one, _ in bundle.of(Ranking)]
    kept = [one for one in compared if one.winner in ("left", "right")]
    report.leave("comparisons without a winner: a pair there has one preferred picture", len(compared) - len(kept))
    report.leave("judgements' axis and time: there is no field for them", len(kept) + len(ranked))
    used = dict.fromkeys([*(s for c in kept for s in (c.left, c.right)), *(i for r in ranked for i in r.image_ids)])
    leave_settings(report, (bundle.pictures[key] for key in used), (), "there is no field for them")
    with Sink(path) as sink:
        files = {key: sink.picture(bundle.pictures[key]) for key in used}
        pairs = [_pair(bundle, one, files, report) for one in kept]
        rankings = [_ranking(bundle, one, files, report) for one in ranked]
        if pairs or not rankings:
            sink.json("train.json", pairs)
        if rankings:
            sink.json("test.json", rankings)
    report.held.update(comparisons=len(pairs), rankings=len(rankings), pictures=len(used))
    return report


def _prompt(bundle: Bundle, keys: tuple[str, ...], report: Report) -> str:
    prompts = [bundle.pictures[key].generation.prompt for key in keys]
    report.leave("prompts of further pictures: an entry has one prompt, that of the first", len(set(prompts)) - 1)
    return prompts[0] or ""


def _pair(bundle: Bundle, one: Comparison, files: dict[str, str], report: Report) -> dict[str, Any]:
    return {
        "human_preference": [1, 0] if one.winner == "left" else [0, 1],
        "prompt": _prompt(bundle, (one.left, one.right), report),
        "file_path": [files[one.left], files[one.right]],
        "user_hash": one.rater,
    }


def _ranking(bundle: Bundle, one: Ranking, files: dict[str, str], report: Report) -> dict[str, Any]:
    ranks = list(range(len(one.image_ids)))  # 0 for the best, there
    return {
        "prompt": _prompt(bundle, one.image_ids, report),
        "image_path": [files[key] for key in one.image_ids],
        "rank": ranks,
        "raw_annotations": [ranks],
        "user_hash": [one.rater],
    }


def recognises(documents: Documents) -> bool:
    """Whether a document has the fields of HPDv2's training or test part."""
    parts = (("human_preference", "prompt"), ("image_path", "rank"), ("image_path", "raw_annotations"))
    return any(True for keys in parts for _ in documents.lists(*keys))


def read(documents: Documents, rater: str) -> Bundle:
    """Pairs and rankings. rater: who judged, where the file does not say. Raises BadData."""
    bundle = Bundle()
    for name, items in documents.lists("human_preference", "prompt"):
        for n, item in enumerate(items):
            _take_pair(bundle, documents, name, item, rater, f"{name or 'The file'}, entry {n}")
    for name, items in documents.lists("image_path", "prompt"):
        for n, item in enumerate(items):
            _take_ranking(bundle, documents, name, item, rater, f"{name or 'The file'}, entry {n}")
    return bundle


def _take_pair(bundle: Bundle, documents: Documents, name: str, item: dict[str, Any], rater: str, where: str) -> None:
    preference = list_of(item, "human_preference", (int, float), where)
    files = list_of(item, "file_path" if "file_path" in item else "image_path", str, where)
    if len(files) != 2 or len(preference) != 2:
        raise BadData(f"{where}: human_preference and file_path must have two entries each.")
    made = Generation(prompt=text(item, "prompt", where) or None)
    left, right = (documents.picture(bundle, file, made, name) for file in files)
    if left == right:
        return bundle.report.leave("pairs: both sides are the same picture")
    winner = "tie" if preference[0] == preference[1] else "left" if preference[0] > preference[1] else "right"
    who = text(item, "user_hash", where) or rater
    bundle.say(lambda: Comparison(left, right, winner, who), where)


def _take_ranking(
    bundle: Bundle, documents: Documents, name: str, item: dict[str, Any], rater: str, where: str
) -> None:
    files = list_of(item, "image_path", str, where)
    made = Generation(prompt=text(item, "prompt", where) or None)
    keys = [documents.picture(bundle, file, made, name) for file in files]
    users, raw = item.get("user_hash"), item.get("raw_annotations")
    given: list[tuple[str, Any]] = []
    if isinstance(raw, list) and raw:
        named = isinstance(users, list) and len(users) == len(raw)
        given = [(str(users[n]) if named else f"{rater} {n + 1}", ranks) for n, ranks in enumerate(raw)]  # type: ignore[index]
    for who, ranks in given or [(rater, item.get("rank"))]:
        ranks = list_of({"rank": ranks}, "rank", (int, float), where)
        if len(ranks) != len(keys) or len(keys) < 2:
            raise BadData(f"{where}: every ranking must have as many ranks as there are pictures, 2 or more.")
        say_ranks(bundle, keys, ranks, who, where)
