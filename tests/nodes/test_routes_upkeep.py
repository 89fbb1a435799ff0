"""Counts and how far they go, deleting, pruning, backups, filters and pairs, through the routes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import folder_paths
import pytest

from feedback_loop.feedback.records import ModelRun
from feedback_loop.nodes import routes_upkeep
from feedback_loop.nodes.compat import data_directory

from .http_calls import API, NO_ID, rating, raw
from .routes_host import RoutesServer, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RoutesServer]:
    with serving(tmp_path) as running:
        yield running


def rate(server: RoutesServer, picture: str, value: float, rater: str = "Zoe") -> None:
    server.post(f"{API}/ratings", rating(picture, rater, value))


def ids(server: RoutesServer, query: str) -> list[str]:
    return [item["id"] for item in server.get(f"{API}/images?{query}")["items"]]


def test_pictures_are_filtered_and_sorted_by_what_was_said_of_them(server):
    low, high, none = (server.picture(grey, text) for grey, text in enumerate(["red kite", "blue kite", "a boat"]))
    rate(server, low, 2)
    rate(server, high, 5)
    assert ids(server, "rated=true&sort=best") == [high, low]
    assert ids(server, "rated=true&sort=worst") == [low, high]
    assert ids(server, "rated=false") == [none]
    assert ids(server, "min_value=0.5") == [high]
    assert ids(server, "max_value=0.5") == [low]
    assert ids(server, "text=KITE&sort=oldest") == [low, high]
    assert ids(server, "rater=Zoe&sort=oldest") == [low, high]
    assert ids(server, "rater=nobody&rated=true") == []
    assert ids(server, "since=2020-01-01T00:00:00Z&until=2020-01-02T00:00:00Z") == []
    assert len(ids(server, "since=2020-01-01T00:00:00Z")) == 3


@pytest.mark.parametrize("sort", ["newest", "oldest", "best", "worst", "watermark"])
def test_pages_follow_each_other_in_every_order(server, sort):
    pictures = [server.picture(grey) for grey in range(7)]
    for place, picture in enumerate(pictures[:5]):
        rate(server, picture, 1 + place % 3)
    found, cursor = [], ""
    while True:
        page = server.get(f"{API}/images?sort={sort}&limit=2{cursor}")
        found += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&{urlencode({'cursor': page['next']})}"
    judged = {"best": pictures[:5], "worst": pictures[:5], "watermark": []}
    assert sorted(found) == sorted(judged.get(sort, pictures))


@pytest.mark.parametrize(
    "query",
    ["rated=maybe", "min_value=2", "min_value=nan", "since=yesterday", "since=2020-01-01T00:00:00", "sort=rowid"]
    + [
        "text=",
        "min_watermark=inf",
        "cursor=..",
        "cursor=1;2",
        "cursor=" + "9" * 200,
        "cursor=1~2~3",
        "sort=best&cursor=1e~1",
        "sort=best&cursor=5",
        "rater=",
        "axis=%00",
        "unknown=1",
        "rated=1&rated=1",
    ],
)
def test_filters_are_taken_only_as_described(server, query):
    server.picture()
    status, answer = server.request("GET", f"{API}/images?{query}")
    assert status == 422
    assert set(answer) == {"error"}


@pytest.mark.parametrize("text", ["' OR 1=1 --", "kite' --", '"kite" OR "boat"', "kite*; DROP TABLE image", "(kite"])
def test_signs_of_a_query_language_in_a_text_mean_nothing(server, text):
    """Only words count, so a text finds the prompts that have all of its words, and no others."""
    words = {"kite' --": ["a red kite"], "(kite": ["a red kite"]}.get(text, [])
    for grey, prompt in enumerate(["a red kite", "a boat"]):
        server.picture(grey, prompt)
    found = server.get(f"{API}/images?{urlencode({'text': text})}")["items"]
    assert [item["prompt"] for item in found] == words


def test_the_next_pair_is_of_two_pictures_of_one_prompt(server):
    assert server.get(f"{API}/pairs/next?rater=Zoe") is None
    kites = {server.picture(grey, "kite") for grey in range(3)}
    pair = server.get(f"{API}/pairs/next?rater=Zoe&policy=learn")
    assert {pair["left"], pair["right"]} < kites
    assert pair["policy"]
    assert 0 < pair["propensity"] <= 1
    comparison = {name: pair[name] for name in ("left", "right", "policy", "propensity")}
    assert server.request("POST", f"{API}/comparisons", {**comparison, "winner": "left", "rater": "Zoe"})[0] == 201
    for wrong in ("", "?rater=", "?rater=Zoe&policy=best", "?rater=Zoe&axis=", "?rater=Zoe&x=1"):
        assert server.request("GET", f"{API}/pairs/next{wrong}")[0] == 422


def test_a_deleted_picture_takes_with_it_all_that_was_said_of_it(server):
    gone, stays = server.picture(1), server.picture(2)
    rate(server, gone, 5)
    rate(server, stays, 3)
    comparison = {"left": gone, "right": stays, "winner": "left", "rater": "Zoe"}
    server.post(f"{API}/comparisons", comparison)
    status, freed = server.request("DELETE", f"{API}/images/{gone}")
    assert (status, freed["images"]) == (200, 1)
    assert freed["bytes"] > 0
    for path in (f"images/{gone}", f"images/{gone}/file", f"images/{gone}/thumbnail", f"images/{gone}/marks"):
        assert server.request("GET", f"{API}/{path}")[0] == 404
    stats = server.get(f"{API}/stats")
    assert (stats["images"], stats["ratings"], stats["comparisons"]) == (1, 1, 0)
    assert raw(server, "GET", f"{API}/images/{stays}/file")[0] == 200
    assert server.request("DELETE", f"{API}/images/{gone}")[0] == 404
    assert server.request("DELETE", f"{API}/images/{NO_ID}")[0] == 404


def test_pruning_leaves_what_was_judged(server):
    judged, _ = server.picture(1), server.picture(2)
    rate(server, judged, 5)
    assert server.post(f"{API}/prune", {})["images"] == 1
    assert ids(server, "") == [judged]
    assert server.post(f"{API}/prune", {}) == {"images": 0, "bytes": 0}
    assert server.request("POST", f"{API}/prune", {"all": True})[0] == 422


def test_pruning_takes_what_finished_trainings_drew_and_leaves_what_others_go_on_with(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of two runs one has its LoRA: its drawn pictures and the weights of its epochs go, its checkpoint stays, and so
    does all of the run that is not done. What lies behind a link is not the run's."""
    monkeypatch.setattr(routes_upkeep, "data_folder", lambda: tmp_path / "data")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "done_00001.safetensors").write_bytes(b"lora")
    elsewhere = tmp_path / "elsewhere" / "rollouts"
    for run in (tmp_path / "data" / "runs" / "done_00001", tmp_path / "data" / "runs" / "open_00002", elsewhere.parent):
        for name in ("rollouts/epoch-00000-0", "averages/epoch-00000", "made", "step-000001/adapter"):
            file = run / f"{name}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes(10))
    linked = tmp_path / "data" / "runs" / "linked"
    linked.symlink_to(elsewhere.parent)
    (tmp_path / "loras" / "linked.safetensors").write_bytes(b"lora")
    assert server.post(f"{API}/prune", {}) == {"images": 0, "bytes": 30}
    left = [len([f for f in run.rglob("*") if f.is_file()]) for run in sorted((tmp_path / "data" / "runs").iterdir())]
    assert (left[0], left[2], len(list(elsewhere.parent.rglob("*.safetensors")))) == (1, 4, 4)
    assert (tmp_path / "data" / "runs" / "done_00001" / "step-000001" / "adapter.safetensors").exists()
    assert server.post(f"{API}/prune", {}) == {"images": 0, "bytes": 0}


def test_a_backup_lies_in_the_data_folder_under_a_name_that_nobody_chose(server):
    server.picture()
    status, first = server.request("POST", f"{API}/backup", {})
    assert status == 200
    assert (data_directory() / "backups" / first["name"]).exists()
    assert first["bytes"] > 0
    assert server.post(f"{API}/backup", {})["name"] != first["name"]
    assert server.request("POST", f"{API}/backup", {"name": "../../x"})[0] == 422


def test_backups_do_not_fill_the_disk_unasked(server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(routes_upkeep, "MAX_BACKUPS", 0)
    status, answer = server.request("POST", f"{API}/backup", {})
    assert status == 409
    assert "delete old ones" in answer["error"]


def test_stats_count_towards_a_reward_and_tell_how_good_the_latest_is(server):
    """100 judgements are taken to be enough for a first reward; one learned from 60 that does not beat chance asks for
    120 instead, and one that beats it for none."""
    stats = server.get(f"{API}/stats")
    assert (stats["ratings_needed"], stats["held_out_accuracy"], stats["beats_chance"]) == (100, None, None)
    assert (stats["self_agreement"], stats["bound"], stats["reliability"]) == (None, None, [])
    rate(server, server.picture(), 3)
    assert server.get(f"{API}/stats")["ratings_needed"] == 99
    for held_out, needed in (([0.55, 0.4, 0.7], 119), ([0.7, 0.6, 0.8], 0)):
        metrics = {"held_out": held_out, "stars": 60, "choices": 0}
        server.store.add_model_run(ModelRun("taste", "taste", 1, "0", {}, metrics))
        stats = server.get(f"{API}/stats")
        assert (stats["held_out_accuracy"], stats["ratings_needed"]) == (held_out[0], needed)
    assert stats["beats_chance"] is True


def test_stats_tell_how_often_a_rater_says_the_same_again(server):
    """Four pairs asked twice with their sides swapped, three answered alike: a = 3/4, bound = (1 + sqrt(1/2)) / 2."""
    pictures = [server.picture(grey) for grey in range(5)]
    for number, other in enumerate(pictures[1:]):
        for left, right, winner in (
            (pictures[0], other, "left"),
            (other, pictures[0], "left" if number == 0 else "right"),
        ):
            body = {"left": left, "right": right, "winner": winner, "rater": "Zoe", "lead_time": 2.0}
            server.post(f"{API}/comparisons", body)
    stats = server.get(f"{API}/stats")
    assert (stats["self_agreement"], round(stats["bound"], 6)) == (0.75, 0.853553)
    (zoe,) = stats["reliability"]
    assert (zoe["rater"], zoe["judgements"], zoe["repeats"], zoe["median_seconds"]) == ("Zoe", 8, 4, 2.0)


def test_stats_tell_what_lies_on_the_disk(server):
    assert set(server.get(f"{API}/stats")["disk"]) >= {"pictures", "database", "backups"}


def test_sizes_on_disk_are_sums_of_files(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 10)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 5)
    assert routes_upkeep.size_of(tmp_path) == 15
    assert routes_upkeep.size_of(tmp_path / "a" / "one") == 10
    assert routes_upkeep.size_of(tmp_path / "gone") == 0
    os.link(tmp_path / "a" / "one", tmp_path / "second name")
    assert routes_upkeep.size_of(tmp_path) == 15, "a second name takes no space"


def test_a_thumbnail_is_made_once(server, tmp_path: Path):
    picture = server.picture()
    assert list((tmp_path / "media" / "thumbnails").rglob("*.jpg")) == []
    first = raw(server, "GET", f"{API}/images/{picture}/thumbnail")[2]
    (file,) = (tmp_path / "media" / "thumbnails").rglob("*.jpg")
    os.utime(file, (1, 1))
    assert raw(server, "GET", f"{API}/images/{picture}/thumbnail")[2] == first
    assert file.stat().st_mtime == 1, "a thumbnail made again would be younger"
