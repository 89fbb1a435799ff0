"""Training by itself on a real server: the whole cycle over HTTP, and the routes about versions."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from sqlalchemy import select

from feedback_loop.feedback.blind_tables import pair as pairs_of
from feedback_loop.feedback.records import Generation
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.tests.comfy_host import ComfyServer
from feedback_loop.training import versions
from feedback_loop.training.versions import Index, Round, Version

from .http_calls import API, rating


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


# The whole cycle

PROMPTS = ("red star", "blue square", "two green circles", "yellow triangle")
RECIPE = {
    "objective": "SFT", "objective.tau": 1.0, "pictures": "rated pictures only", "steps": 2, "learning_rate": 0.01,
    "batch": 4, "rank": 4, "seed": 1, "layers": "attention", "start_from": "the model", "prompts": "", "pairs": 30,
    "sampling_steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "sgm_uniform", "width": 32, "height": 32,
}  # fmt: skip


def graph(name: str, **changes: Any) -> dict[str, Any]:
    """Demo model and ratings into the node, which shows its report."""
    people = {"decided_by": "people", "decided_by.votes": 30, "decided_by.collection": f"pairs of {name}"}
    given = {"new_ratings": 20, "dry_run": False, "name": name, **people, **RECIPE, **changes}
    sockets = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "clip_vision": ["1", 3], "feedback": ["2", 0]}
    dataset = {"collection": f"ratings of {name}", "raters": "", "axis": "overall", "min_ratings": 1}
    return {
        "1": {"class_type": "FeedbackDemoModel", "inputs": {}},
        "2": {"class_type": "FeedbackDataset", "inputs": dataset},
        "3": {"class_type": "FeedbackAutoTrain", "inputs": {**sockets, **given}},
    }


def said(server: ComfyServer, name: str, **changes: Any) -> str:
    return server.run(graph(name, **changes))["3"]["text"][0]


def test_from_ratings_to_a_lora_that_won_thirty_votes_and_back_over_http(
    comfy_server: ComfyServer, name: str, rater: str
) -> None:
    """Stars and votes are posted as a page posts them; who votes for the candidate has to look into the database, since
    no route tells whose a picture is."""
    data = Path(comfy_server.base_directory) / "user" / "__feedback_loop"
    store = FeedbackStore(f"sqlite:///{data / 'feedback.sqlite3'}", data / "media")
    greys = [np.full((32, 32, 3), 20 + 9 * i, np.uint8) for i in range(24)]
    made = [(grey, Generation(prompt=PROMPTS[i % 4], seed=str(i))) for i, grey in enumerate(greys)]
    for i, image in enumerate(store.add_images(made, f"ratings of {name}")):
        comfy_server.post(f"{API}/ratings", rating(image, rater, 1 + i // 5))
    assert "It would train by SFT" in said(comfy_server, name, dry_run=True)
    assert comfy_server.request("GET", path(name))[0] == 404
    assert "0 of 30 votes" in said(comfy_server, name)
    candidates = set(store.ask(lambda c: list(c.execute(select(pairs_of.c.b_id)).scalars())))
    store.close()
    for votes in range(30):
        assert comfy_server.get(path(name))["round"] == {"stage": "judging", "candidate": 1, "votes": votes}
        vote(comfy_server, name, rater, candidates)
    assert f"version 1 ({name}_00001.safetensors) is in use now" in said(comfy_server, name)
    assert comfy_server.get(path(name))["in_use"] == 1
    assert comfy_server.post(path(name, "/use"), {"version": 0})["in_use"] == 0
    assert "In use: the model without a LoRA." in said(comfy_server, name)


def vote(server: ComfyServer, name: str, rater: str, candidates: set[str]) -> None:
    """Asks for the next pair and answers it for the candidate; pairs that come back were answered before."""
    asked = f"{API}/pairs/next?collection={quote(f'pairs of {name}')}&rater={quote(rater)}"
    while (pair := server.get(asked))["repeat_of"]:
        pass
    told = [server.get(f"{API}/images/{pair[side]}") for side in ("left", "right")]
    assert {one["prompt"] for one in told} <= set(PROMPTS) and told[0]["seed"] == told[1]["seed"]
    body = {"left": pair["left"], "right": pair["right"], "policy": pair["policy"], "propensity": pair["propensity"]}
    winner = "left" if pair["left"] in candidates else "right"
    server.post(f"{API}/comparisons", {**body, "winner": winner, "axis": "overall", "rater": rater})
