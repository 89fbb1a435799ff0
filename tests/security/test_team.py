"""Team mode under attack: without a token, with one that is none, and with one's own in another's name.

The routes run over a real store on a server of their own, which starts in an instant; ComfyUI adds nothing to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from feedback_loop.feedback.gate import Gate, GateKey, Question
from feedback_loop.nodes.gate_room import ROOM
from feedback_loop.tests.comfy_host import JSON
from feedback_loop.tests.nodes.http_calls import API, rating, raw
from feedback_loop.tests.nodes.routes_host import RoutesServer, serving

from .bodies import BODIES, FIRST, SECOND, UPLOADS, WITHOUT_BODY
from .target import SENTENCE

SIZE = (12, 16)  # of RoutesServer.picture
READS = (
    *("images", "images/{id}", "images/{id}/marks", "pairs/next?rater=Ann", "stats", "settings", "me", "gates"),
    "export?format=parquet",
)
NO_TOKENS = {
    "none": None,
    "an empty one": "",
    "no text": "Bearer ",
    "a guess": "Bearer 0000000000000000000000000000000000000000000",
    "a name": "Bearer Ann",
    "SQL": "Bearer ' OR 1=1 --",
    "5000 characters": "Bearer " + "x" * 5000,
    "a password": "Basic QW5uOkFubg==",
    "two": "Bearer a, Bearer b",
    "NUL": "Bearer %00",
}


@dataclass
class Team:
    """`ann` and `bob`: their headers; `judgement`: what Bob said of the first picture; `gate`: one that waits."""

    server: RoutesServer
    ann: dict[str, str]
    bob: dict[str, str]
    images: list[str]
    judgement: str
    gate: Gate

    def path(self, path: str, key: str = "") -> str:
        id_ = self.judgement if "judgements" in path else self.images[0]
        return (
            f"{API}/{path}".replace("{id}", id_).replace("{key}", key or str(self.gate.key)).replace("{name}", "nobody")
        )

    def body(self, body: JSON, rater: str) -> JSON:
        filled = json.loads(json.dumps(body).replace(FIRST, self.images[0]).replace(SECOND, self.images[1]))
        return {**filled, **({"rater": rater} if "rater" in body else {})}


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with serving(tmp_path_factory.mktemp("team"), team=True) as server:
        ann, bob = ({"Authorization": f"Bearer {server.store.add_token(name)}"} for name in ("Ann", "Bob"))
        images = [server.picture(grey, "a kite") for grey in (1, 2)]
        said = server.request("POST", f"{API}/ratings", rating(images[0], "Bob"), bob)[1]["id"]
        gate = ROOM.enter(GateKey("team", "1"), Question("choose", tuple(images), SIZE, "c", "skip"), None)
        try:
            yield Team(server, ann, bob, images, said, gate)
        finally:
            ROOM.leave(gate, "was stopped")


@pytest.fixture
def unchanged(team: Team) -> Iterator[None]:
    """Nothing was recorded, Bob's judgement counts, and the run waits on."""
    before = team.server.store.revision()
    yield
    assert team.server.store.revision() == before
    (one,) = team.server.request("GET", team.path("images/{id}"), headers=team.bob)[1]["ratings"]
    assert one["id"] == team.judgement
    assert ROOM.answered(team.gate) is None


def refused(answer: tuple[int, Any], status: int) -> None:
    assert answer[0] == status, answer
    assert set(answer[1]) == {"error"} and SENTENCE.match(answer[1]["error"]), answer


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("token", NO_TOKENS.values(), ids=list(NO_TOKENS))
def test_without_a_token_that_is_known_every_route_is_shut(team: Team, token: str | None) -> None:
    """What is asked for would be right otherwise, and nothing of it is told."""
    headers = {} if token is None else {"Authorization": token}
    asked = [("GET", path, None) for path in READS]
    asked += [(method, path, team.body(body, "Ann")) for (method, path), body in BODIES.items()]
    asked += [(method, path, None) for method, path in (*WITHOUT_BODY, *UPLOADS)]
    for method, path, body in asked:
        answer = team.server.request(method, team.path(path), body, headers)
        refused(answer, 401)
        assert not [secret for secret in (*team.images, team.judgement, "Bob", "kite") if secret in answer[1]["error"]]


JUDGED = {route: body for route, body in BODIES.items() if "rater" in body}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("route", JUDGED, ids=[path for _, path in JUDGED])
@pytest.mark.parametrize("name", ["Bob", "ann", "Ann ", "Ann\u200b", "keeper"])
def test_a_member_speaks_in_nobody_elses_name(team: Team, route: tuple[str, str], name: str) -> None:
    method, path = route
    refused(team.server.request(method, team.path(path), team.body(JUDGED[route], name), team.ann), 403)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("query", ["", "?rater=Ann", "?rater=Bob", "?clear=true", "?rater=Bob&clear=true"])
def test_a_member_takes_back_nothing_of_another(team: Team, query: str) -> None:
    refused(team.server.request("DELETE", team.path("judgements/{id}") + query, headers=team.ann), 403)


@pytest.mark.usefixtures("unchanged")
def test_a_token_counts_in_its_header_alone(team: Team) -> None:
    """Not in the address, which ends up in logs and histories, not in a cookie, which pages of others can use, and not
    in a header of a proxy."""
    token = team.ann["Authorization"].removeprefix("Bearer ")
    for headers in ({"Cookie": f"token={token}; Authorization={token}"}, {"X-Authorization": f"Bearer {token}"}):
        refused(team.server.request("GET", team.path("stats"), headers=headers), 401)
    for name in ("token", "access_token", "Authorization"):
        assert raw(team.server, "GET", team.path(f"images?{name}={token}"))[0] == 401


@pytest.mark.usefixtures("unchanged")
def test_a_members_token_does_not_let_a_strangers_page_in(team: Team) -> None:
    for header in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}):
        body = team.body(JUDGED["POST", "ratings"], "Ann")
        refused(team.server.request("POST", team.path("ratings"), body, {**team.ann, **header}), 403)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("DELETE", "images/{id}", None), ("POST", "prune", {}), ("POST", "backup", {}), ("PUT", "settings", {})],
)
def test_what_concerns_everybody_is_for_keepers(team: Team, method: str, path: str, body: Any) -> None:
    """Also by another spelling of the path, which then is no path of ours."""
    for spelling in (path, f"{path}/", f"./{path}", path.replace("e", "%65")):
        status, answer = team.server.request(method, team.path(spelling), body, team.ann)
        assert status in (403, 404, 405), answer


def test_the_run_goes_on_with_the_answer_of_a_member_in_their_own_name(team: Team) -> None:
    """The last of this module: what was refused to everybody above is taken now."""
    body = {"action": "choose", "images": team.images[:1], "rater": "Ann"}
    status, answer = team.server.request("POST", team.path("gates/{key}"), body, team.ann)
    assert status == 200, answer
    assert (said := ROOM.answered(team.gate)) is not None and said.rater == "Ann"
