"""Every attack on the HTTP interface, as a list: what is sent, and which refusals are right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from feedback_loop.tests.nodes.http_calls import API, NO_ID

from .bodies import BODIES, NO_GATE, UPLOADS, WITHOUT_BODY, WRONG, body_of, fields, spoiled
from .target import Target

REFUSED = range(400, 500)
JSON_TYPE = {"Content-Type": "application/json"}
Made = bytes | Callable[[Target], Any]


@dataclass(frozen=True)
class Attack:
    """`path` may hold {image} and {judgement}; `body` is sent as it is or made from the target, and then as JSON."""

    name: str
    method: str
    path: str
    body: Made = b""
    headers: tuple[tuple[str, str], ...] = tuple(JSON_TYPE.items())
    refused: range | tuple[int, ...] = REFUSED

    def send(self, target: Target) -> Any:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body(target)).encode()
        path = self.path.replace("{image}", target.images[0]).replace("{judgement}", target.judgement)
        path = path.replace("{key}", NO_GATE).replace("{id}", NO_ID).replace("{name}", "nobody")
        return target.send(self.method, f"{API}/{path}", body, dict(self.headers))


PATHS = {
    "dots": "../../etc/passwd",
    "dots, encoded": "..%2f..%2fetc%2fpasswd",
    "dots, encoded twice": "..%252f..%252f..%252fetc%252fpasswd",
    "dots of Windows": "..%5c..%5cwindows%5cwin.ini",
    "dots, overlong UTF-8": "%c0%ae%c0%ae%c0%af%c0%ae%c0%ae%c0%afsecret.txt",
    "an absolute path": "%2fetc%2fpasswd",
    "a drive": "C:%5cwindows%5cwin.ini",
    "a share": "%5c%5chost%5cshare%5cx.png",
    "NUL": "secret.png%00.png",
    "the suffix of core's folders": "secret.png%20%5binput%5d",
    "a device": "CON",
    "a device with a port": "%5c%5c.%5cCOM1",
    "4096 characters": "x" * 4096,
    "SQL": "'%20OR%201=1%20--",
    "a newline": f"{NO_ID}%0a",
    "capitals": NO_ID.upper(),
    "a header": "x%0d%0aSet-Cookie:%20a=b",
}
ID_ROUTES = (
    *(("GET", f"images/{{id}}{end}") for end in ("", "/file", "/thumbnail", "/marks", "/family")),
    *WITHOUT_BODY,
)


def paths() -> Iterator[Attack]:
    """No path gets in where an id belongs, in a URL or in a body."""
    for name, path in PATHS.items():
        for method, route in ID_ROUTES:
            yield Attack(f"{method} {route}: {name}", method, route.replace("{id}", path))
        gate = ("POST", "gates/{key}")
        yield Attack(f"POST gates/{{key}}: {name}", "POST", f"gates/{path}", _body(gate))
    for name, path in (("dots", "../../etc/passwd"), ("absolute", "/etc/passwd"), ("SQL", "' OR 1=1 --")):
        for route, body in BODIES.items():
            for field in fields(body):
                if field in ("image_id", "left", "right", "result_id"):
                    yield _changed(route, field, path, f"{field}: {name}")


def _changed(route: tuple[str, str], field: str, value: Any, name: str) -> Attack:
    return Attack(
        f"{route[0]} {route[1]}: {name}", *route, body=lambda target: spoiled(body_of(target, route), field, value)
    )


NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "half an object": b"{",
    "a list": b"[]",
    "a text": b'"text"',
    "no UTF-8": b"\xff\xfe{}",
    "a form in JSON's clothes": b"image_id=1&value=4",
    "NaN": b'{"value": NaN}',
    "Infinity": b'{"value": -Infinity}',
    "1e999": b'{"value": 1e999}',
    "10,000 digits": b'{"value": ' + b"9" * 10_000 + b"}",
    "a key twice": b'{"rater": "a", "rater": "b"}',
    "100,000 lists": b"[" * 100_000,
    "90,000 objects": b'{"a":' * 90_000,
    "too many bytes": b" " * (512 * 1024 + 1),
}


def bodies() -> Iterator[Attack]:
    """What is no clean JSON, no JSON at all, or not of the described form."""
    for route, body in BODIES.items():
        where = f"{route[0]} {route[1]}"
        for name, data in NOT_JSON.items():
            yield Attack(f"{where}: {name}", *route, body=data)
        for name in ("__proto__", "constructor", "path", "url", "$where"):
            yield _changed(route, name, {"polluted": True}, f"an unknown field {name}")
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/xml"):
            headers = (("Content-Type", kind),)
            yield Attack(f"{where} as {kind}", *route, body=_body(route), headers=headers, refused=(415,))
        yield Attack(f"{where} without a type", *route, body=_body(route), headers=(), refused=(415,))
        for field in fields(body):
            for name, value in WRONG.items():
                yield _changed(route, field, value, f"{field} is {name}")
    for number in ("value", "lead_time"):
        yield _changed(("POST", "ratings"), number, True, f"{number} is a boolean")
        yield _changed(("POST", "ratings"), number, "4", f"{number} is a text")


def _body(route: tuple[str, str]) -> Callable[[Target], Any]:
    return lambda target: body_of(target, route)


STRANGERS = {
    "a sandboxed frame or a file": ("Origin", "null"),
    "another page": ("Origin", "http://evil.example"),
    "another port of this machine": ("Origin", "http://127.0.0.1:1"),
    "a page whose name begins like ours": ("Origin", "http://127.0.0.1.evil.example"),
    "an extension": ("Origin", "chrome-extension://abc"),
    "no origin at all, but the header": ("Origin", ""),
    "a rebound name": ("Host", "evil.example"),
    "a rebound name with our address in it": ("Host", "127.0.0.1.evil.example"),
    "a host that is none": ("Host", "a@localhost"),
}


def strangers() -> Iterator[Attack]:
    """Pages from elsewhere write nothing, and read nothing either."""
    for name, header in STRANGERS.items():
        for route in BODIES:
            headers = (*JSON_TYPE.items(), header)
            yield Attack(f"{' '.join(route)}: {name}", *route, body=_body(route), headers=headers, refused=(403,))
        for method, route in (*WITHOUT_BODY, *UPLOADS):
            path = route.replace("{id}", "{judgement}" if "judgements" in route else "{image}")
            yield Attack(f"{method} {route}: {name}", method, path, headers=(header,), refused=(403,))
        for path in ("images", "stats", "images/{image}", "images/{image}/file", "export?format=parquet"):
            yield Attack(f"GET {path}: {name}", "GET", path, headers=(header,), refused=(403,))


def methods() -> Iterator[Attack]:
    """Nothing changes by a GET, or by a method that a form can be made to send."""
    for method, path in [*BODIES, *UPLOADS]:
        if method == "POST":
            yield Attack(f"GET {path}", "GET", path, refused=(404, 405))
        yield Attack(f"{path}?_method=DELETE", method, f"{path}?_method=DELETE", b"_method=DELETE", ())
    yield Attack("HEAD ratings", "HEAD", "ratings", refused=(404, 405))
    for id_ in ("{image}", "{judgement}"):
        yield Attack(f"POST to delete {id_}", "POST", f"judgements/{id_}", headers=(("X-HTTP-Method", "DELETE"),))


QUERIES = {
    "images": (
        *("limit=-1", "limit=0", "limit=1000000000", "limit=abc", "limit=1e3", "limit=2&limit=3", "limit=%00"),
        *("cursor=-1", "cursor=1%20OR%201=1", f"cursor={'9' * 4096}", "cursor=..%2f..", "collection="),
        *("collection=%00", f"collection={'x' * 4096}", "sort=id;DROP%20TABLE%20image", "sort=newest'--"),
        *("min_value=NaN", "min_value=1e999", "max_value=-1", "min_watermark=Infinity", "since=yesterday"),
        *(
            "since=2026-01-01",
            "since=99999-01-01T00:00:00Z",
            "since=0",
            "until=0.5",
            "rated=maybe",
            "text=%00",
            f"text={'x' * 4096}",
        ),
        *("unknown=1", "__proto__=1", "image_id=../../etc/passwd"),
    ),
    "pairs/next": (
        *("", "rater=", "rater=%00", "rater=r&policy=all", "rater=r&axis=", "rater=r&limit=1"),
        f"rater={'x' * 4096}",
    ),
    "export": (
        *("", "format=pickle", "format=../../x", "format=csv", "format=parquet&collection=%00"),
        *("format=parquet&path=/etc/passwd", "format=parquet&collection=a%0d%0aSet-Cookie:%20a=b"),
        "format=parquet&axis=%00",
    ),
    "stats": ("x=1",),
    "settings": ("path=/etc/passwd",),
}


def queries() -> Iterator[Attack]:
    for path, asked in QUERIES.items():
        for one in asked:
            yield Attack(f"GET {path}?{one[:60]}", "GET", f"{path}?{one}", refused=(404, 422))
    for one in ("rater=", "clear=2", "id=1", "rater=a&rater=b"):
        yield Attack(f"DELETE judgement?{one}", "DELETE", f"judgements/{{judgement}}?{one}", refused=(422,))


def judgements() -> Iterator[Attack]:
    """What is well-formed and still not true, or not the sender's."""
    stranger = quote("somebody else")
    yield Attack("undo as another rater", "DELETE", f"judgements/{{judgement}}?rater={stranger}", refused=(403,))
    for route in BODIES:
        for field in fields(BODIES[route]):
            if field in ("image_id", "left", "right"):
                yield _changed(route, field, NO_ID, f"{field} of no picture")
    yield Attack(
        "a picture against itself", "POST", "comparisons",
        body=lambda t: body_of(t, ("POST", "comparisons")) | {"right": t.images[0]}, refused=(422,),
    )  # fmt: skip
    for name, ids in {
        "one picture": lambda t: t.images[:1],
        "a picture twice": lambda t: [t.images[0]] * 2,
        "65 pictures": lambda t: t.images[:1] * 65,
        "a picture that is not": lambda t: [t.images[0], NO_ID],
    }.items():
        yield Attack(
            f"a ranking of {name}", "POST", "rankings",
            body=lambda t, ids=ids: body_of(t, ("POST", "rankings")) | {"image_ids": ids(t)}, refused=(404, 422),
        )  # fmt: skip
    for change in (
        *({"value": value} for value in (0.999, 5.001, -1, 1e9)),
        *({"scale": {"min": low, "max": high}} for low, high in ((5, 1), (1, 1), (1, 1e308))),
        *({"lead_time": value} for value in (-1, 1e308)),
    ):
        yield _merged("ratings", change)
    for change in ({"word_index": -1}, {"word_index": 2**63}, {"word_index": 10**30}, {"word_index": 1.5}):
        yield _merged("word_marks", change)
    for index in (1, 100_000):
        yield _merged("word_marks", {"word_index": index, "word": "nowhere"})


def _merged(path: str, change: dict[str, Any]) -> Attack:
    route = ("POST", path)
    return Attack(f"POST {path}: {str(change)[:60]}", *route, body=lambda t: body_of(t, route) | change)


def geometry() -> Iterator[Attack]:
    inside, corner = [0.5, 0.5], [0.9, 0.9]
    for name, change in {
        "two points as a point": {"shape": "point", "geometry": [inside, corner]},
        "no point": {"shape": "point", "geometry": []},
        "one corner": {"shape": "rect", "geometry": [inside]},
        "no area": {"shape": "rect", "geometry": [inside, inside]},
        "outside": {"shape": "point", "geometry": [[1.1, 0.5]]},
        "below": {"shape": "point", "geometry": [[-0.1, 0.5]]},
        "three numbers": {"shape": "point", "geometry": [[0.1, 0.2, 0.3]]},
        "a polygon of two": {"shape": "polygon", "geometry": [inside, corner]},
        "a polygon of 1001": {"shape": "polygon", "geometry": [inside] * 1001},
        "an unknown shape": {"shape": "ellipse", "geometry": [inside, corner]},
        "a mask without one": {"shape": "mask", "geometry": []},
        "a mask with corners": {"shape": "mask", "geometry": [inside], "mask": "AAAA"},
        "a severity of two": {"severity": 2},
    }.items():
        yield Attack(
            f"POST regions: {name}", "POST", "regions",
            body=lambda t, change=change: body_of(t, ("POST", "regions")) | change, refused=(422,),
        )  # fmt: skip


def keys() -> Iterator[Attack]:
    for name, key in (("long", "x" * 256), ("empty", ""), ("a tab", "a\tb"), ("no ASCII", "\xe9")):
        headers = (*JSON_TYPE.items(), ("Idempotency-Key", key))
        yield Attack(f"a key: {name}", "POST", "ratings", _body(("POST", "ratings")), headers, (400,))


ATTACKS = [
    attack
    for subject in (paths, bodies, strangers, methods, queries, judgements, geometry, keys)
    for attack in subject()
]
