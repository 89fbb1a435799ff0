"""Versions over HTTP, on a real server: how they stand, another one into use, the candidate dropped."""

from __future__ import annotations

import uuid
from pathlib import Path
from urllib.parse import quote

import pytest

from feedback_loop.tests.comfy_host import ComfyServer
from feedback_loop.training import versions
from feedback_loop.training.versions import Index, Round, Version

from .http_calls import API


@pytest.fixture
def name() -> str:
    return f"auto {uuid.uuid4()}"


def folder(server: ComfyServer, name: str) -> Path:
    return Path(server.base_directory) / "user" / "__feedback_loop" / "auto_train" / name


def path(name: str, what: str = "") -> str:
    return f"{API}/auto_train/{quote(name)}{what}"


@pytest.fixture
def trained(comfy_server: ComfyServer, name: str) -> str:
    """Two promoted versions, and a third one that is being compared."""
    when = "2026-01-31T12:00:00+00:00"

    def made(_: Index) -> Index:
        index = Index()
        for number in (1, 2, 3):
            index = versions.begun(index, Round({}, {}))
            index = versions.trained(index, Version(number, f"{number}.safetensors", "", when, 50, {}), 1)
            index = index if number == 3 else versions.promoted(index, "it won")
        return index

    versions.change(folder(comfy_server, name), made)
    return name


def test_the_list_says_what_is_in_use_and_how_many_votes_there_are(comfy_server: ComfyServer, trained: str) -> None:
    told = comfy_server.get(path(trained))
    assert (told["name"], told["in_use"], told["back"]) == (trained, 2, 1)
    assert told["round"] == {"stage": "judging", "candidate": 3, "votes": 0}
    outcomes = [(one["number"], one["outcome"], one["why"]) for one in told["versions"]]
    assert outcomes == [(1, "promoted", "it won"), (2, "promoted", "it won"), (3, "candidate", "")]


def test_one_request_goes_back_and_sent_twice_it_goes_no_further(comfy_server: ComfyServer, trained: str) -> None:
    for _ in range(2):
        told = comfy_server.post(path(trained, "/use"), {"version": 1})
        assert (told["in_use"], told["back"]) == (1, 0)
    assert versions.read(folder(comfy_server, trained)).in_use == 1
    assert comfy_server.post(path(trained, "/use"), {"version": 0})["back"] is None


def test_a_candidate_is_dropped_and_stays_in_the_list(comfy_server: ComfyServer, trained: str) -> None:
    told = comfy_server.post(path(trained, "/drop"), {})
    assert told["round"] is None and told["in_use"] == 2 and told["versions"][2]["outcome"] == "dropped"
    status, answer = comfy_server.request("POST", path(trained, "/drop"), {})
    assert status == 409 and "Nothing is under way" in answer["error"]


def test_nothing_is_dropped_under_a_run_that_is_at_work(comfy_server: ComfyServer, trained: str) -> None:
    with versions.working(folder(comfy_server, trained)) as mine:
        status, answer = comfy_server.request("POST", path(trained, "/drop"), {})
        assert mine and status == 409 and "Cancel that run first" in answer["error"]
        assert comfy_server.post(path(trained, "/use"), {"version": 1})["in_use"] == 1  # needs no wait for a training


@pytest.mark.parametrize("version", [-1, 1.5, "1", True, None, 10**9])
def test_what_is_no_version_is_refused(comfy_server: ComfyServer, trained: str, version: object) -> None:
    status, answer = comfy_server.request("POST", path(trained, "/use"), {"version": version})
    assert status == 422 and answer["error"]


def test_a_version_that_is_not_there_is_refused(comfy_server: ComfyServer, trained: str) -> None:
    status, answer = comfy_server.request("POST", path(trained, "/use"), {"version": 4})
    assert status == 409 and "no version 4" in answer["error"]
    assert comfy_server.get(path(trained))["in_use"] == 2


@pytest.mark.parametrize(("wrong", "status"), [("..%2f..%2fx", 422), ("%00", 422), ("a%5cb", 422), ("nobody", 404)])
def test_names_of_nothing_and_of_other_places_are_refused(comfy_server: ComfyServer, wrong: str, status: int) -> None:
    for method, what, body in (("GET", "", None), ("POST", "/use", {"version": 0}), ("POST", "/drop", {})):
        given, answer = comfy_server.request(method, f"{API}/auto_train/{wrong}{what}", body)
        assert given == status and answer["error"], answer
    assert not folder(comfy_server, "nobody").exists()


def test_a_damaged_list_is_told(comfy_server: ComfyServer, trained: str) -> None:
    (folder(comfy_server, trained) / versions.FILE).write_text("{")
    status, answer = comfy_server.request("GET", path(trained))
    assert status == 409 and "from a backup" in answer["error"]
