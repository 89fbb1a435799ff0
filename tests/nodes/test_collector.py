"""The collector that ComfyUI calls while prompts run looks only at what came after the server's start."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
from aiohttp import web

from feedback_loop.nodes import collector


@pytest.fixture
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_was_there_at_the_servers_start_is_not_looked_at_again(thawed: None) -> None:
    early = [object() for _ in range(3)]
    asyncio.run(collector.spare_what_stays(web.Application()))
    late = [early]
    # get_objects() leaves out what is spared.
    looked_at = {id(thing) for thing in gc.get_objects()}
    assert gc.get_freeze_count() > 100_000  # torch alone is more than that
    assert id(early) not in looked_at
    assert id(late) in looked_at
