"""Data sets as nodes and over HTTP: files by name, forms with our header, one at a time, errors as sentences."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from aiohttp import FormData, web
from aiohttp.test_utils import TestClient, TestServer

from feedback_loop.feedback.formats import FORMATS, BadData, reading, write
from feedback_loop.feedback.formats.exchange import into_store
from feedback_loop.feedback.media import encode_png
from feedback_loop.feedback.records import Generation, Rating
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import compat, exchange_files, format_routes, formats
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.routes_answers import ROOT
from feedback_loop.nodes.team import DOOR, Door
from feedback_loop.tests.feedback import bundles
from feedback_loop.tests.feedback.conftest import picture

OURS = {format_routes.HEADER: "1"}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedbackStore]:
    """A store of the test's own, and folders for data sets."""
    store = FeedbackStore(f"sqlite:///{tmp_path / 'feedback.sqlite3'}", tmp_path / "media")
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(formats, "store", lambda: store)
    monkeypatch.setattr(compat, "data_directory", lambda: tmp_path)
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    yield store
    store.close()


def export(feedback: Any, form: str = "imagefolder", name: str = "mine", **more: Any) -> tuple[Any, ...]:
    given = {"pairs_from_stars": False, "raters": "names", "more_axes": ""} | more
    return formats.FeedbackExport.execute(feedback, form, name, **given).args


def take(file: str, form: str = "find out", collection: str = "imported", rater: str = "me") -> tuple[Any, ...]:
    return formats.FeedbackImport.execute(file, form, collection, rater).args


# --- nodes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_what_the_one_node_writes_the_other_takes_in(kept: FeedbackStore, tmp_path: Path, form: str) -> None:
    into_store(kept, bundles.generated(1), "mine")
    file, report = export(kept.feedback("mine"), form)
    assert report.startswith("Held: ") and file == f"mine{FORMATS[form].suffix}"
    source = tmp_path / "output" / file
    source.rename(tmp_path / "input" / file)
    kept_pictures = kept.stats().images
    feedback, count, text = take(file)
    assert kept.stats().images == kept_pictures and "were there already" in text
    assert feedback.collection == "imported" and isinstance(count, int)


def test_an_export_never_overwrites_and_leaves_no_half_file(kept: FeedbackStore, tmp_path: Path) -> None:
    id_ = kept.add_image(picture(1), Generation(prompt="a cat"), "mine")
    kept.add_rating(Rating(id_, 4, "ana"))
    assert [export(kept.feedback())[0] for _ in range(2)] == ["mine.zip", "mine_2.zip"]
    with pytest.raises(BadData, match="can hold nothing of this feedback"):
        export(kept.feedback(), "hpdv2")
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["mine.zip", "mine_2.zip"]


def test_raters_can_be_numbered_in_a_file(kept: FeedbackStore, tmp_path: Path) -> None:
    id_ = kept.add_image(picture(1), Generation(prompt="a cat"), "mine")
    kept.add_rating(Rating(id_, 4, "Ana Example"))
    file, _ = export(kept.feedback(), raters="numbers")
    with reading(tmp_path / "output" / file, "x") as bundle:
        assert bundle.raters() == ["rater 1"]
    assert b"Ana Example" not in (tmp_path / "output" / file).read_bytes()


@pytest.mark.parametrize("name", ["../../etc/x", "..\\x", "/abs", "a/b", "x\0y", "x\r\nSet-Cookie: a=b", "x" * 4096])
def test_a_name_with_a_path_becomes_a_file_inside_the_output_folder(
    kept: FeedbackStore, tmp_path: Path, name: str
) -> None:
    id_ = kept.add_image(picture(1), Generation(prompt="a cat"), "mine")
    kept.add_rating(Rating(id_, 4, "ana"))
    file, _ = export(kept.feedback(), name=name)
    assert (tmp_path / "output" / file).parent == tmp_path / "output" and (tmp_path / "output" / file).is_file()
    assert len(file) < 120 and file.isprintable()


@pytest.mark.parametrize("name", ["", "..", "CON", "nul.zip", "///"])
def test_a_name_of_which_nothing_is_left_is_refused(kept: FeedbackStore, name: str) -> None:
    id_ = kept.add_image(picture(1), Generation(prompt="a cat"), "mine")
    kept.add_rating(Rating(id_, 4, "ana"))
    with pytest.raises(BadData, match="no name for a file"):
        export(kept.feedback(), name=name)


@pytest.mark.parametrize(
    "name", ["../secret.zip", "/etc/passwd", "link.zip", "folder/x.zip", "x.zip [input]", "gone.zip", "notes.txt"]
)
def test_only_files_of_the_input_folder_itself_can_be_taken_in(kept: FeedbackStore, tmp_path: Path, name: str) -> None:
    write("imagefolder", bundles.generated(1), tmp_path / "secret.zip")
    (tmp_path / "input" / "link.zip").symlink_to(tmp_path / "secret.zip")
    (tmp_path / "input" / "folder").mkdir()
    (tmp_path / "input" / "notes.txt").write_text("x")
    assert exchange_files.input_files() == []
    with pytest.raises(BadData, match="There is no data set"):
        take(name)
    assert "There is no data set" in str(formats.FeedbackImport.validate_inputs(name))


def test_what_is_no_feedback_and_what_is_empty_are_told_apart(kept: FeedbackStore) -> None:
    with pytest.raises(WrongConnectionError, match="Connect Collect feedback"):
        export(3.5)
    with pytest.raises(BadData, match="There is no feedback to export"):
        export(kept.feedback())


def test_a_changed_file_is_taken_in_again(kept: FeedbackStore, tmp_path: Path) -> None:
    path = tmp_path / "input" / "a.zip"
    write("imagefolder", bundles.generated(1), path)
    before = formats.FeedbackImport.fingerprint_inputs("a.zip")
    write("imagefolder", bundles.generated(2, pictures=7), path)
    assert formats.FeedbackImport.fingerprint_inputs("a.zip") != before


# --- routes ----------------------------------------------------------------------------------------------------------


def asking(kept: FeedbackStore, talk: Any, team: bool = False) -> Any:
    """Runs `talk(client)` against our two routes on a server of their own."""

    async def run() -> Any:
        app = web.Application(client_max_size=2**20)
        app[DOOR] = Door(lambda: kept, ThreadPoolExecutor(1), team)
        routes = web.RouteTableDef()
        format_routes.add_routes(routes, lambda: kept)
        app.add_routes(routes)
        async with TestClient(TestServer(app)) as client:
            return await talk(client)

    return asyncio.run(run())


def form_of(data: bytes, **fields: str) -> FormData:
    form = FormData()
    for name, value in fields.items():
        form.add_field(name, value)
    form.add_field("file", data, filename="../../x.zip", content_type="application/zip")
    return form


async def posted(client: TestClient, data: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    async with client.post(f"{ROOT}/import", data=data, headers=OURS if headers is None else headers) as answer:
        return answer.status, await answer.json()


def test_a_file_goes_in_and_comes_out_over_http(kept: FeedbackStore, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    bundle = bundles.generated(1)
    write("imagefolder", bundle, path)

    async def talk(client: TestClient) -> None:
        status, answer = await posted(client, form_of(path.read_bytes(), collection="theirs"))
        assert (status, answer["pictures"]) == (200, len(bundle.pictures)) and answer["judgements"] > 0
        status, again = await posted(client, form_of(path.read_bytes(), collection="theirs"))
        assert (status, again["judgements"], again["pictures"]) == (200, answer["judgements"], answer["pictures"])
        query = {"format": "parquet", "collection": "theirs", "names": "false"}
        async with client.get(f"{ROOT}/export", params=query) as got:
            assert got.status == 200
            assert got.headers["Content-Disposition"] == 'attachment; filename="feedback-parquet.parquet"'
            assert json.loads(got.headers[format_routes.REPORT])["held"]["pictures"] > 0
            (tmp_path / "out.parquet").write_bytes(await got.read())

    asking(kept, talk)
    with reading(tmp_path / "out.parquet", "x") as out:
        assert len(out.pictures) > 0 and set(out.raters()) <= {f"rater {n}" for n in range(1, 9)}
    assert kept.stats().ratings == len(bundle.of(Rating))
    assert not list(tmp_path.glob("exchange_*")), "nothing is left of files on their way"


def test_a_form_without_our_header_from_a_foreign_page_too_large_or_malformed_is_refused(kept: FeedbackStore) -> None:
    async def talk(client: TestClient) -> None:
        good = bundles.generated(1)
        assert good.said
        assert (await posted(client, form_of(b"x"), {}))[0] == 403
        assert (await posted(client, form_of(b"x"), OURS | {"Origin": "https://evil.example"}))[0] == 403
        assert (await posted(client, form_of(b"x"), OURS | {"Origin": "null"}))[0] == 403
        assert (await posted(client, b"{}", OURS | {"Content-Type": "application/json"}))[0] == 415
        assert (await posted(client, form_of(b"P" * (2**20 + 1))))[0] == 413
        assert (await posted(client, form_of(b"PK", path="/etc/passwd")))[0] == 422
        assert (await posted(client, form_of(b"PK", format="pickle")))[0] == 422

    asking(kept, talk)
    assert kept.stats().images == 0


def test_a_form_that_breaks_off_doubles_a_field_or_has_no_file_is_refused(kept: FeedbackStore) -> None:
    async def talk(client: TestClient) -> None:
        double = form_of(b"PK", collection="a")
        double.add_field("collection", "b")
        status, answer = await posted(client, double)
        assert status == 422 and "one name twice" in answer["error"]
        bare = FormData(default_to_multipart=True)
        bare.add_field("collection", "a")
        status, answer = await posted(client, bare)
        assert status == 422 and "no field called file" in answer["error"]
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        assert (await posted(client, b"--x\r\nContent-Disposition: form-data; name=", OURS | kind))[0] in (400, 422)
        assert (await posted(client, b"", OURS | {"Content-Type": "multipart/form-data"}))[0] == 400
        status, answer = await posted(client, form_of(b"\x80\x04\x95 a pickle"))
        assert status == 422 and "pickle" in answer["error"]

    asking(kept, talk)
    assert kept.stats().images == 0


def test_an_export_of_nothing_an_unknown_format_and_a_path_for_one_are_refused(kept: FeedbackStore) -> None:
    async def talk(client: TestClient) -> None:
        for query in ({"format": "imagefolder"}, {"format": "../x"}, {}, {"format": "coco", "path": "x"}):
            async with client.get(f"{ROOT}/export", params=query) as got:
                assert got.status == 422 and (await got.json())["error"]

    asking(kept, talk)


def test_in_a_team_a_file_speaks_only_behind_the_name_of_who_sent_it(kept: FeedbackStore, tmp_path: Path) -> None:
    token = kept.add_token("ana")
    path = tmp_path / "a.zip"
    data = encode_png(picture(3))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a.png", data)
        row = {"file_name": "a.png", "prompt": "x", "ratings": [{"raw": 5, "rater": "ben"}]}
        packed.writestr("metadata.jsonl", json.dumps(row))

    async def talk(client: TestClient) -> None:
        assert (await posted(client, form_of(path.read_bytes())))[0] == 401
        status, _ = await posted(client, form_of(path.read_bytes()), OURS | {"Authorization": f"Bearer {token}"})
        assert status == 200

    asking(kept, talk, team=True)
    assert [one.rater for one in kept.rated(kept.feedback())] == ["ana: ben"]


def test_an_unknown_id_in_a_file_is_no_way_to_another_picture(kept: FeedbackStore, tmp_path: Path) -> None:
    """A made-up id with other pixels than ours is a new picture, whoever has that id."""
    id_ = kept.add_image(picture(1), Generation(prompt="mine"), "mine")
    rng = random.Random(1)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for key in (id_, str(uuid.uuid4())):
            packed.writestr(f"{key}.png", bundles.png(rng))
    kept_before = kept.image(id_)
    exchange_files.take_in(kept, path, "find out", "theirs", "", "", lambda done, total: None)
    assert kept.image(id_) == kept_before and kept.stats().collections == {"mine": 1, "theirs": 2}
