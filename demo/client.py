"""Talks to a running ComfyUI as any script would: queues graphs in API format, waits, fetches pictures and ratings."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any

import numpy as np
import torch
from PIL import Image

Link = list[Any]  # [node id, output index]


class Graph:
    """An API-format prompt under construction: `add` returns the node's id."""

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {}

    def add(self, class_type: str, **inputs: Any) -> str:
        key = str(len(self.nodes) + 1)
        self.nodes[key] = {"class_type": class_type, "inputs": inputs}
        return key


class ServerError(RuntimeError):
    """The server refused a request or a graph failed; the message is what it said."""


class Server:
    def __init__(self, url: str) -> None:
        self.url, self.client_id = url.rstrip("/"), uuid.uuid4().hex

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """JSON in, JSON out."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"} | headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ServerError(
                f"{method} {path}: {error.code} {error.read().decode(errors='replace')[:2000]}"
            ) from error

    def run(self, graph: Graph) -> dict[str, Any]:
        """Queue, wait to the end; the UI outputs by node id. Raises ServerError with the failing node's message."""
        queued = self.call("POST", "/prompt", {"prompt": graph.nodes, "client_id": self.client_id})
        if queued.get("node_errors"):  # ComfyUI runs the outputs that it finds no fault with, and leaves out the others
            raise ServerError(f"Part of the graph was refused: {json.dumps(queued['node_errors'])[:2000]}")
        while True:
            history = self.call("GET", f"/history/{queued['prompt_id']}")
            if history:
                entry = history[queued["prompt_id"]]
                break
            time.sleep(0.2)
        if entry["status"]["status_str"] != "success":
            raise ServerError(_failure(entry["status"]["messages"]))
        return entry["outputs"]

    def pictures(self, output: dict[str, Any]) -> torch.Tensor:
        """A saving or previewing node's UI output -> (B, 3, H, W) in 0..1."""
        return torch.stack([self._fetch("/view?" + urllib.parse.urlencode(i)) for i in output["images"]])

    def captured(self, image_id: str) -> torch.Tensor:
        return self._fetch(f"/feedback_loop/v1/images/{image_id}/file")

    def _fetch(self, path: str) -> torch.Tensor:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            picture = Image.open(io.BytesIO(answer.read())).convert("RGB")
        return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255

    def rate(self, image_id: str, stars: int, rater: str) -> str:
        body = {"image_id": image_id, "value": stars, "scale": {"min": 1, "max": 5}, "axis": "overall", "rater": rater}
        return self.call("POST", "/feedback_loop/v1/ratings", body, **{"Idempotency-Key": uuid.uuid4().hex})["id"]


def _failure(messages: list[Any]) -> str:
    for kind, detail in messages:
        if kind == "execution_error":
            return f"{detail['node_type']}: {detail['exception_message']}"
    return f"the graph did not succeed: {messages}"
