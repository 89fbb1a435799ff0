"""The server that is attacked: what lies around it, requests sent exactly as given, and what must not change."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import os
import re
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from feedback_loop.tests.comfy_host import JSON, ComfyServer
from feedback_loop.tests.nodes.http_calls import API, captured, rating

from . import files

CANARY = f"canary {uuid.uuid4()}"
"""Stands in a file outside of every root; an answer that holds it has read what it must not."""

OWN = ("base/user", "base/temp", "comfyui.log", "base/comfyui.db")
"""What the server may change, below its folder: ComfyUI's user folder, where ours is too, and its own files."""

SENTENCE = re.compile(r"\S+ \S+.*[.\]]$", re.DOTALL)
"""What is left of an exception that nobody expected has no full stop."""
LEAKS = ("Traceback", 'File "', "site-packages", "root:x:", CANARY)


@dataclass
class Answer:
    """What came back, if anything: `status` 0 means that the server closed the connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class State:
    """`judged`: what is counted, and the revision that grows with whatever is recorded. `outside`: every file that no
    request may touch, with a hash of its content; links are not followed."""

    judged: JSON
    outside: dict[str, str]


@dataclass
class Target:
    """`images`: three pictures with somebody's judgements; `judgement`: one of those; `owner`: that somebody."""

    server: ComfyServer
    folder: Path
    images: list[str] = field(default_factory=list)
    judgement: str = ""
    owner: str = "the owner"
    _senders: Any = field(default_factory=lambda: itertools.count(2))

    def state(self) -> State:
        """Asks the server, so that one that no longer answers is noticed."""
        stats = self.server.get(f"{API}/stats")
        return State({name: stats[name] for name in ("revision", "images", "raters")}, self._outside())

    def _outside(self) -> dict[str, str]:
        found = {}
        for parent, folders, names in os.walk(self.folder):
            for name in [*folders, *names]:
                path = Path(parent, name)
                relative = path.relative_to(self.folder).as_posix()
                if not relative.startswith(OWN):
                    found[relative] = _state(path)
        return found

    def send(
        self, method: str, path: str, body: Any = b"", headers: dict[str, str] | None = None, seconds: float = 120
    ) -> Answer:
        """The request as it stands, from an address of its own where the system has more than one for itself: attacks
        are many and fast, and what is to be seen is not the rate limit."""
        source = (f"127.0.0.{2 + next(self._senders) % 250}", 0) if sys.platform == "linux" else None
        connection = http.client.HTTPConnection(
            urlsplit(self.server.url).netloc, timeout=seconds, source_address=source
        )
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
            return Answer(0, {}, b"")
        finally:
            connection.close()

    def refuses(self, answer: Answer, statuses: range | tuple[int, ...] = range(400, 500)) -> str:
        """Asserts that the answer is a refusal with a reason fit for a person, which is returned."""
        text = answer.body.decode("utf-8", "replace")
        assert answer.status in statuses, f"{answer.status}: {text[:500]}"
        assert not [leak for leak in LEAKS if leak in text], text[:1000]
        if not answer.headers.get("content-type", "").startswith("application/json"):
            return text  # aiohttp's own: no such route, no such method
        assert set(answer.json()) == {"error"}, text[:500]
        assert SENTENCE.match(answer.json()["error"]), text[:500]
        return answer.json()["error"]


def _state(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if not path.is_file():
        return "folder" if path.is_dir() else "a pipe"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hostile_folders(folder: Path) -> None:
    """A secret beside the server's base directory, and what strangers left inside of it: pictures, rewards, links."""
    for name in ("secret.txt", "secret.png", "secret.safetensors"):
        (folder / name).write_text(CANARY)
    for place, made, named in (
        ("output", files.PICTURES | files.STRANGE_PICTURES, str),
        ("models/feedback_rewards", files.REWARDS, files.reward_file),
    ):
        (inside := folder / "base" / place).mkdir(parents=True)
        for name, data in made.items():
            (inside / named(name)).write_bytes(data())
    (folder / "base/output/a link.png").symlink_to(folder / "secret.png")
    (folder / "base/output/a linked folder").symlink_to(folder, target_is_directory=True)
    (folder / "base/models/feedback_rewards" / files.reward_file("a link")).symlink_to(folder / "secret.safetensors")
    os.mkfifo(folder / "base/output/a pipe.png")


def judged_pictures(target: Target) -> Target:
    """Three new pictures, of which the first was rated. ComfyUI would answer the same graph from its cache."""
    target.images = captured(target.server, f"attacked {uuid.uuid4()}", 3, 0x3366CC)
    target.judgement = target.server.post(f"{API}/ratings", rating(target.images[0], target.owner))["id"]
    return target
