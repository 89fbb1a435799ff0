"""The list of versions: what each change makes of it, and that it is whole on disk whatever happens."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest

from feedback_loop.feedback.evaluation import wilson
from feedback_loop.training import versions
from feedback_loop.training.versions import Index, Round, Version, VersionsError

BEGUN = Round({"revision": 9}, {"steps": 3})


def version(number: int) -> Version:
    return Version(number, f"auto_{number:05}.safetensors", f"sha256:{number}", "2026-01-31T12:00:00+00:00", 50, {})


def judged(index: Index, better: bool) -> Index:
    """One whole round more."""
    index = versions.trained(versions.named(versions.begun(index, BEGUN), "auto"), version(len(index.versions) + 1), 9)
    return (versions.promoted if better else versions.not_promoted)(index, "it was so")


def test_a_candidate_is_not_in_use_before_it_is_promoted() -> None:
    index = versions.trained(versions.begun(Index(), BEGUN), version(1), seen=9)
    assert index.in_use == 0 and index.seen == 9 and index.round is not None
    assert (index.round.stage, index.round.candidate, index.round.rival) == ("judging", 1, 0)
    after = versions.promoted(index, "it won")
    assert after.in_use == 1 and after.round is None and after.version(1).outcome == "promoted"
    assert versions.not_promoted(index, "it lost").in_use == 0


def test_going_back_leads_through_everything_that_was_in_use() -> None:
    """Promoted 1, not 2, promoted 3: back leads to 1, then to the model, then nowhere; and forth again by name."""
    index = judged(judged(judged(Index(), True), False), True)
    assert (index.in_use, index.before) == (3, (0, 1))
    for wanted in (1, 0):
        assert index.back == wanted
        index = versions.use(index, wanted)
        assert index.in_use == wanted
    assert index.back is None
    index = versions.use(index, 2)
    assert (index.in_use, index.back) == (2, 0)


def test_taking_the_version_in_use_into_use_changes_nothing() -> None:
    index = judged(Index(), True)
    assert versions.use(index, 1) == index
    assert versions.use(versions.use(index, 0), 0) == versions.use(index, 0)


def test_there_is_no_going_to_a_version_that_is_not_there() -> None:
    with pytest.raises(VersionsError, match="no version 2"):
        versions.use(judged(Index(), True), 2)


def test_a_dropped_round_keeps_its_lora_in_the_list() -> None:
    index = versions.trained(versions.begun(judged(Index(), True), BEGUN), version(2), 9)
    after = versions.dropped(index, "dropped by hand")
    assert after.round is None and after.in_use == 1 and after.version(2).outcome == "dropped"
    assert versions.dropped(after, "again") == after
    with pytest.raises(VersionsError, match="Run this node again"):
        versions.promoted(after, "too late")


def test_a_candidate_is_compared_anew_with_what_came_into_use() -> None:
    index = versions.trained(versions.begun(judged(Index(), True), BEGUN), version(2), 9)
    index = versions.again(versions.use(versions.planned(index, "trial", 7), 0))
    assert index.round is not None
    assert (index.round.candidate, index.round.rival, index.round.trial, index.round.first_seed) == (2, 0, "", 0)


@pytest.mark.parametrize(
    ("wins", "votes", "wanted", "better"), [(30, 29, 30, None), (21, 30, 30, True), (20, 30, 30, False)]
)
def test_a_winner_has_all_its_votes_and_its_whole_interval_above_one_half(
    wins: int, votes: int, wanted: int, better: bool | None
) -> None:
    """Wilson's lower end at 30 votes, z = 1.96: (p + z^2/60 - z sqrt(p(1-p)/30 + z^2/3600)) / (1 + z^2/30): .521 for
    21 wins, .488 for 20."""
    assert versions.better(wilson(wins, 30), votes, wanted) is better


def test_the_list_reads_back_as_it_was_written(tmp_path: Path) -> None:
    assert versions.read(tmp_path) == Index()
    index = versions.planned(versions.trained(versions.begun(judged(Index(), True), BEGUN), version(2), 9), "t", 2**62)
    assert versions.change(tmp_path, lambda _: index) == index
    assert versions.read(tmp_path) == index


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"versions": [], "in_use": 1, "before": [], "seen": 0, "round": null}',
        '{"versions": [], "in_use": true, "before": [], "seen": 0, "round": null}',
        '{"versions": [], "in_use": 0, "before": [-1], "seen": 0, "round": null}',
        '{"versions": [], "in_use": 0, "before": [], "seen": 0, "round": null, "more": 1}',
        '{"versions": [{}], "in_use": 0, "before": [], "seen": 0, "round": null}',
    ],
)
def test_a_damaged_list_is_told_and_never_written_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / versions.FILE
    path.write_text(text)
    with pytest.raises(VersionsError, match="Put it back from a backup, or take it away"):
        versions.change(tmp_path, partial(versions.begun, now=BEGUN))
    assert path.read_text() == text


def test_a_change_that_fails_leaves_the_list_as_it_was(tmp_path: Path) -> None:
    versions.change(tmp_path, lambda index: judged(index, True))
    before = (tmp_path / versions.FILE).read_bytes()
    with pytest.raises(VersionsError):
        versions.change(tmp_path, partial(versions.use, number=5))
    assert (tmp_path / versions.FILE).read_bytes() == before


def test_changes_of_many_threads_are_all_there(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda: versions.change(tmp_path, lambda index: judged(index, True))) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.number for one in versions.read(tmp_path).versions] == list(range(1, 13))


def test_only_one_is_at_work_and_the_next_one_once_it_is_done(tmp_path: Path) -> None:
    with versions.working(tmp_path) as mine, versions.working(tmp_path) as other:
        assert mine and not other
    with versions.working(tmp_path) as free:
        assert free
