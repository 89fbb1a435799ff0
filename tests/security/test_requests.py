"""Requests that no page or script of ours sends: each is refused with a reason, and nothing comes of it."""

from __future__ import annotations

import pytest

from feedback_loop.tests.nodes.http_calls import API

from .attacks import ATTACKS, Attack
from .bodies import BODIES, UPLOADS, WITHOUT_BODY
from .target import Target


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_an_attack_is_refused_and_nothing_else_happens(target: Target, attack: Attack) -> None:
    target.refuses(attack.send(target), attack.refused)


def test_every_route_that_changes_something_is_attacked(target: Target) -> None:
    """A route that is new in the description has to appear in bodies.py."""
    described = target.server.get(f"{API}/openapi.json")["paths"]
    changing = {(m.upper(), path[1:]) for path, methods in described.items() for m in methods if m != "get"}
    assert changing - {*BODIES, *WITHOUT_BODY, *UPLOADS} == set()
