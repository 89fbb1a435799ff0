"""Team mode: a token says who judges. And in every mode: requests that come too fast wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback_loop.nodes import team
from feedback_loop.nodes.routes_answers import THREADS
from feedback_loop.nodes.team import Limit, Rates

from .http_calls import API, NO_ID, rating, raw
from .routes_host import RoutesServer, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("team")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RoutesServer]:
    with serving(folder, team=True) as running:
        yield running


@pytest.fixture(scope="module")
def picture(server: RoutesServer) -> str:
    return server.picture()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def ann(server: RoutesServer) -> dict[str, str]:
    return bearer(server.store.add_token("Ann"))


@pytest.fixture(scope="module")
def bob(server: RoutesServer) -> dict[str, str]:
    return bearer(server.store.add_token("Bob"))


def test_a_member_judges_under_their_own_name(server, picture, ann):
    status, answer = server.request("POST", f"{API}/ratings", rating(picture, "Ann"), ann)
    assert status == 201
    (one,) = server.request("GET", f"{API}/images/{picture}", headers=ann)[1]["ratings"]
    assert (one["id"], one["rater"]) == (answer["id"], "Ann")


BODIES = {
    "ratings": {"value": 4, "scale": {"min": 1, "max": 5}},
    "comments": {"text": "x"},
    "tags": {"tag": "x"},
    "regions": {"shape": "point", "geometry": [[0, 0]], "label": "x"},
    "word_marks": {"word_index": 0, "word": "x", "label": "good"},
    "interactions": {"kind": "saved"},
}


@pytest.mark.parametrize("path", BODIES)
def test_nobody_judges_under_the_name_of_another(server, picture, ann, path):
    before = server.store.revision()
    status, answer = server.request("POST", f"{API}/{path}", {"image_id": picture, "rater": "Bob", **BODIES[path]}, ann)
    assert status == 403
    assert "'Ann'" in answer["error"]
    assert server.store.revision() == before


def test_nobody_takes_back_what_another_said(server, picture, ann, bob):
    id_ = server.request("POST", f"{API}/ratings", rating(picture, "Bob"), bob)[1]["id"]
    for query in ("", "?rater=Ann", "?rater=Bob"):
        assert server.request("DELETE", f"{API}/judgements/{id_}{query}", headers=ann)[0] == 403
    assert server.request("DELETE", f"{API}/judgements/{id_}", headers=bob)[0] == 200


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer x", "Basic QW5uOng=", "Bearer " + "x" * 5000, "Bearer ' OR 1=1 --"],
)
def test_without_a_token_that_is_known_nothing_is_told_and_nothing_taken(server, picture, ann, header):
    headers = {} if header is None else {"Authorization": header}
    before = server.store.revision()
    for method, path, body in (
        ("POST", "ratings", rating(picture, "Ann")),
        ("GET", "images", None),
        ("GET", f"images/{picture}", None),
        ("GET", f"images/{picture}/marks", None),
        ("GET", "stats", None),
        ("GET", "pairs/next?rater=Ann", None),
        ("DELETE", f"images/{picture}", None),
        ("DELETE", f"judgements/{NO_ID}", None),
        ("POST", "prune", {}),
        ("POST", "backup", {}),
        ("PUT", "settings", {"interactions": True}),
    ):
        status, answer = server.request(method, f"{API}/{path}", body, headers)
        assert status == 401
        assert "token" in answer["error"]
        assert picture not in answer["error"]
    assert server.store.revision() == before


KEPT = [("DELETE", "images/{}", None), ("POST", "prune", {}), ("PUT", "settings", {"interactions": False})]


@pytest.mark.parametrize(("method", "path", "body"), KEPT)
def test_only_keepers_delete_what_others_said_and_decide_for_all(server, ann, bob, monkeypatch, method, path, body):
    path = f"{API}/{path.format(server.picture(9))}"
    status, answer = server.request(method, path, body, ann)
    assert status == 403
    assert team.KEEPERS in answer["error"]
    monkeypatch.setenv(team.KEEPERS, "Zoe, Bob")
    assert server.request(method, path, body, ann)[0] == 403
    assert server.request(method, path, body, bob)[0] == 200


@pytest.mark.parametrize(("path", "body"), [("use", {"version": 0}), ("drop", {})])
def test_only_keepers_say_which_trained_lora_everybody_uses(server, ann, bob, monkeypatch, path, body):
    """Nothing was trained under this name, which a keeper is told, and who is none is not."""
    monkeypatch.setenv(team.KEEPERS, "Bob")
    path = f"{API}/auto_train/nobody trained this/{path}".replace(" ", "%20")
    assert server.request("POST", path, body, ann)[0] == 403
    assert server.request("POST", path, body, bob)[0] == 404


@pytest.mark.parametrize(("value", "on"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_team_mode_is_on_for_anything_that_does_not_say_off(monkeypatch, value, on):
    monkeypatch.delenv(team.TEAM, raising=False)
    if value is not None:
        monkeypatch.setenv(team.TEAM, value)
    assert team.Door(lambda: pytest.fail("not asked"), THREADS).team is on


def test_a_refusal_names_the_scheme(server):
    status, headers, _ = raw(server, "GET", f"{API}/stats")
    assert (status, headers["www-authenticate"]) == (401, "Bearer")


def test_pictures_show_in_a_page_which_can_send_no_header_with_them(server, picture):
    for name in ("file", "thumbnail"):
        assert raw(server, "GET", f"{API}/images/{picture}/{name}")[0] == 200
        assert raw(server, "GET", f"{API}/images/{NO_ID}/{name}")[0] == 404


def test_a_member_can_ask_who_they_are(server, ann):
    assert server.request("GET", f"{API}/me", headers=ann) == (200, {"team": True, "rater": "Ann"})


def test_a_withdrawn_token_is_worth_nothing(server):
    token = server.store.add_token("Eve")
    assert server.request("GET", f"{API}/me", headers=bearer(token))[0] == 200
    server.store.revoke_tokens("Eve")
    assert server.request("GET", f"{API}/me", headers=bearer(token))[0] == 401


def test_the_database_holds_no_token(server, folder):
    token = server.store.add_token("Ann")
    held = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"Ann" in held
    assert token.encode() not in held


def test_alone_anybody_is_who_they_say(tmp_path):
    with serving(tmp_path) as server:
        assert server.get(f"{API}/me") == {"team": False, "rater": None}
        assert server.request("POST", f"{API}/ratings", rating(server.picture(), "Zoe"))[0] == 201


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_let_through_and_then_the_rate():
    """3 at once; then one every half second, so after 1 s there are 2."""
    clock = Clock()
    rates = Rates(Limit(3, 2), clock)
    assert [rates.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now = 1
    assert [rates.take("a") for _ in range(3)] == [0, 0, 0.5]


def test_one_sender_does_not_use_up_anothers_share():
    rates = Rates(Limit(1, 1), Clock())
    assert [rates.take(sender) for sender in "aab"] == [0, 1, 0]


def test_a_long_rest_saves_up_no_more_than_a_burst():
    clock = Clock()
    rates = Rates(Limit(2, 1), clock)
    rates.take("a")
    clock.now = 1e6
    assert [rates.take("a") for _ in range(3)] == [0, 0, 1]


def test_a_million_senders_take_no_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(team, "SENDERS", 10)
    rates = Rates(Limit(1, 1), Clock())
    for sender in range(1000):
        rates.take(str(sender))
    assert len(rates._left) == 10


def test_requests_that_come_too_fast_are_told_how_long_to_wait(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """2 writes at once, then one in 100 s; reading goes on."""
    monkeypatch.setattr(team, "WRITES", Limit(2, 0.01))
    with serving(tmp_path) as server:
        picture = server.picture()
        statuses = [server.request("POST", f"{API}/ratings", rating(picture, "Zoe"))[0] for _ in range(4)]
        assert statuses == [201, 201, 429, 429]
        status, headers, body = raw(server, "DELETE", f"{API}/judgements/{NO_ID}")
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 100
        assert b"too fast" in body
        assert server.get(f"{API}/stats")["ratings"] == 2


def test_backups_and_the_like_are_counted_apart(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(team, "HEAVY", Limit(1, 0.01))
    with serving(tmp_path) as server:
        statuses = [server.request("POST", f"{API}/prune", {})[0] for _ in range(2)]
        assert statuses == [200, 429]
        assert server.request("POST", f"{API}/ratings", rating(server.picture(), "Zoe"))[0] == 201
