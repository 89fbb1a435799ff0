"""Requests to our routes, and what they changed."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import urlsplit

from feedback_loop.tests.comfy_host import JSON, ComfyServer

API = "/feedback_loop/v1"


NO_ID = "00000000-0000-4000-8000-00000000abcd"


STARS = {"min": 1, "max": 5}


def raw(
    server: ComfyServer, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request that is sent exactly as given."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def rating(image: str, rater: str, value: Any = 4, **more: Any) -> JSON:
    return {"image_id": image, "value": value, "scale": STARS, "axis": "overall", "rater": rater, **more}


def listed(server: ComfyServer, image: str, rater: str) -> list[JSON]:
    """This rater's ratings of the picture."""
    return [one for one in server.get(f"{API}/images/{image}")["ratings"] if one["rater"] == rater]


def judged(server: ComfyServer) -> tuple[int, int, int]:
    stats = server.get(f"{API}/stats")
    return stats["ratings"], stats["comparisons"], stats["comments"]


def captured(server: ComfyServer, collection: str, count: int, color: int) -> list[str]:
    """The ids of `count` captured pictures of (24, 32) pixels, all of one colour."""
    size = {"width": 32, "height": 24, "batch_size": count}
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {**size, "color": color}},
        "2": {"class_type": "FeedbackCapture", "inputs": {"images": ["1", 0], "collection": collection}},
    }
    return server.run(graph)["2"]["feedback_images"]
