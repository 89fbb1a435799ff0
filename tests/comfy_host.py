"""A real ComfyUI server for tests, and what a client does with it over HTTP."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from feedback_loop import start

JSON = dict[str, Any]


class ComfyServer:
    """The process and its HTTP interface. `url`, `base_directory`; paths are relative to `url`."""

    def __init__(self, server: start.Server) -> None:
        self.server = server
        self.url = server.url
        self.base_directory = server.base_directory

    def alive(self) -> bool:
        return self.server.alive()

    def log(self) -> str:
        return self.server.log()

    def request(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON (or text) of any request; an HTTP error is a result here, not an exception."""
        data = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, parsed(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, parsed(error.read())

    def get(self, path: str) -> Any:
        status, answer = self.request("GET", path)
        assert status == 200, f"GET {path}: {status} {answer}"
        return answer

    def post(self, path: str, body: object) -> Any:
        status, answer = self.request("POST", path, body)
        assert status in (200, 201), f"POST {path}: {status} {answer}"
        return answer

    def queue_prompt(self, prompt: JSON, workflow: JSON | None = None) -> str:
        """Queues a prompt in API format (`{"1": {"class_type", "inputs"}}`) and returns its id."""
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        answer = self.post("/prompt", {"prompt": prompt, "client_id": "tests", "extra_data": extra})
        assert not answer.get("node_errors"), answer["node_errors"]
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 300) -> JSON:
        """The prompt's history entry once it has ended: `outputs`, and `status` with `status_str` success or error."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.alive(), f"ComfyUI ended:\n{self.log()[-4000:]}"
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry.get("status", {}).get("status_str"):
                return entry
            time.sleep(0.1)
        raise AssertionError(f"prompt {prompt_id} did not end:\n{self.log()[-4000:]}")

    def run(self, prompt: JSON, workflow: JSON | None = None, seconds: float = 300) -> JSON:
        """Queues, waits and requires success; returns the outputs, by node id."""
        entry = self.wait(self.queue_prompt(prompt, workflow), seconds)
        assert entry["status"]["status_str"] == "success", error_of(entry) or self.log()[-4000:]
        return entry["outputs"]


def parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def error_of(entry: JSON) -> str | None:
    """`Node: message` of a prompt that failed, as the user sees it."""
    for kind, details in entry["status"]["messages"]:
        if kind == "execution_error":
            return f"{details['node_type']}: {details['exception_message']}"
    return None


def running(folder: Path, comfyui: Path | None) -> Iterator[ComfyServer]:
    if comfyui is None:
        pytest.skip("no ComfyUI found (COMFYUI_PATH)")
    base = folder / "base"
    options = ["--cpu"]
    port = start.free_port()
    server = start.start_server(Path(sys.executable), comfyui, base, port, folder / "comfyui.log", options)
    try:
        yield ComfyServer(start.wait_until_ready(server))
    finally:
        server.stop()
