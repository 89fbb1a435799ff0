"""What people do with pictures anyway, each kind in a real page on a real server: nothing of it until it is wanted."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Route

from feedback_loop.tests.browser.sidebar_page import API, Sidebar

ROWS = "SELECT kind, result_id FROM interaction WHERE image_id = ? ORDER BY kind"
SWITCH = "value => app.extensionManager.setting.set('FeedbackLoop.Interactions', value)"
COLLECTION = "interactions"


def switch(sidebar: Sidebar, on: bool) -> None:
    """As the settings dialog does it, until the server has it."""
    sidebar.page.evaluate(SWITCH, on)
    sidebar.comfy_page.poll(lambda: sidebar.server.get(f"{API}/settings")["interactions"] is on, 30)


@pytest.fixture
def on(sidebar: Sidebar) -> Iterator[None]:
    switch(sidebar, True)
    yield
    switch(sidebar, False)


def save(sidebar: Sidebar, image_id: str) -> None:
    sidebar.row(image_id).hover()
    with sidebar.page.expect_download() as download:
        sidebar.row(image_id).get_by_label("Save a copy").click()
    assert download.value.suggested_filename == f"feedback_{image_id}.png"


def empty(color: int) -> dict[str, Any]:
    return {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": color}}


def capture(source: str) -> dict[str, Any]:
    return {"class_type": "FeedbackCapture", "inputs": {"images": [source, 0], "collection": COLLECTION}}


def run(sidebar: Sidebar, graph: dict[str, Any]) -> dict[str, Any]:
    """The history entry of a graph that the page queued."""
    return sidebar.comfy_page.load_prompt(graph).queue()


def with_seed(sidebar: Sidebar, seed: int) -> str:
    """The id of what a graph makes of a seed."""
    noise = {"class_type": "ImageAddNoise", "inputs": {"image": ["1", 0], "seed": seed, "strength": 0.5}}
    entry = run(sidebar, {"1": empty(8), "2": noise, "3": capture("2")})
    return entry["outputs"]["3"]["feedback_images"][0]


def kept(sidebar: Sidebar, color: int) -> tuple[str, str, str]:
    """A run captures a picture and saves it; its id, its file as loaders name it, and the id of the job."""
    saving = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": f"kept {uuid.uuid4()}"}}
    entry = run(sidebar, {"1": empty(color), "2": capture("1"), "3": saving})
    name = entry["outputs"]["3"]["images"][0]["filename"]
    return entry["outputs"]["2"]["feedback_images"][0], f"{name} [output]", entry["prompt"][1]


SCALE = {"upscale_method": "bilinear", "width": 96, "height": 96, "crop": "disabled"}
ON_FROM_A_FILE: dict[str, dict[str, Any]] = {
    "picked": {"2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}},
    "upscaled": {"2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], **SCALE}}},
    "inpainted": {
        "4": {"class_type": "FeedbackDemoModel", "inputs": {}},
        "5": {
            "class_type": "VAEEncodeForInpaint",
            "inputs": {"pixels": ["1", 0], "vae": ["4", 2], "mask": ["1", 1], "grow_mask_by": 0},
        },
        "2": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["4", 2]}},
    },
}
"""By kind: nodes from a loaded picture (1) to what becomes of it (2)."""


def go_on(sidebar: Sidebar, kind: str, file: str) -> str:
    """The id of what a graph of the kind makes of the file."""
    load = {"class_type": "LoadImage", "inputs": {"image": file}}
    entry = run(sidebar, {"1": load, **ON_FROM_A_FILE[kind], "3": capture("2")})
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry["outputs"]["3"]["feedback_images"][0]


def delete_job(sidebar: Sidebar, job: str) -> None:
    """As ComfyUI's own lists of jobs do it."""
    sidebar.page.evaluate("job => app.api.deleteItem('history', job)", job)
    assert sidebar.server.get(f"/history/{job}") == {}


def test_a_saved_copy_and_another_seed_are_recorded(sidebar: Sidebar, three: list[str], on: None) -> None:
    save(sidebar, three[1])
    sidebar.expect_rows([("saved", None)], ROWS, three[1])
    first, second = [with_seed(sidebar, seed) for seed in (1, 2)]
    sidebar.expect_rows([("regenerated", second)], ROWS, first)


@pytest.mark.parametrize("kind", ON_FROM_A_FILE)
def test_what_a_picture_is_loaded_for_is_recorded_with_what_became_of_it(sidebar: Sidebar, on: None, kind: str) -> None:
    image, file, _ = kept(sidebar, 100 + list(ON_FROM_A_FILE).index(kind))
    result = go_on(sidebar, kind, file)
    sidebar.expect_rows([(kind, result)], ROWS, image)
    # Once more says nothing new of the same picture.
    go_on(sidebar, kind, file)
    with_seed(sidebar, 11)
    assert sidebar.rows_of(ROWS, image) == [(kind, result)]


def test_a_picture_put_into_the_graph_from_the_sidebar_is_picked(sidebar: Sidebar, three: list[str], on: None) -> None:
    sidebar.page.evaluate("() => app.graph.clear()")
    sidebar.row(three[0]).click()
    sidebar.page.keyboard.press("g")
    file = f"feedback_{three[0]}.png"
    sidebar.comfy_page.poll(lambda: (sidebar.server.base_directory / "input" / file).exists(), 30)
    result = go_on(sidebar, "picked", file)
    sidebar.expect_rows([("picked", result)], ROWS, three[0])


def test_a_deleted_job_deletes_nothing_of_ours_and_is_recorded_for_its_pictures(sidebar: Sidebar, on: None) -> None:
    image, _, job = kept(sidebar, 200)
    delete_job(sidebar, job)
    sidebar.expect_rows([("deleted", None)], ROWS, image)
    assert sidebar.server.request("GET", f"{API}/images/{image}")[0] == 200


def test_a_job_deleted_before_the_page_looked_at_its_end_is_recorded_too(sidebar: Sidebar, on: None) -> None:
    def late(route: Route) -> None:
        sidebar.page.wait_for_timeout(2000)
        route.continue_()

    sidebar.page.route("**/history/*", late)
    image, _, job = kept(sidebar, 201)
    delete_job(sidebar, job)
    sidebar.expect_rows([("deleted", None)], ROWS, image)


def test_until_the_user_turns_it_on_nothing_of_any_kind_is_recorded(sidebar: Sidebar, three: list[str]) -> None:
    """Everything above is done with the switch as it is found, and the server takes nothing from a script either."""
    assert sidebar.server.get(f"{API}/settings") == {"interactions": False}
    before = sidebar.rows_of("SELECT count(*) FROM interaction")
    save(sidebar, three[1])
    first, _ = [with_seed(sidebar, seed) for seed in (3, 4)]
    image, file, job = kept(sidebar, 300)
    for kind in ON_FROM_A_FILE:
        go_on(sidebar, kind, file)
    delete_job(sidebar, job)
    for kind in ("saved", "deleted", "regenerated", "inpainted", "upscaled", "picked"):
        said = {"kind": kind, "image_id": image, "rater": "me"}
        status, answer = sidebar.server.request("POST", f"{API}/interactions", said)
        assert (status, "the switch is off" in answer["error"]) == (409, True)
    # What is done next is recorded, so what came before would have been by now.
    switch(sidebar, True)
    save(sidebar, three[2])
    sidebar.expect_rows([("saved", None)], ROWS, three[2])
    switch(sidebar, False)
    assert [sidebar.rows_of(ROWS, one) for one in (three[1], first, image)] == [[], [], []]
    assert sidebar.rows_of("SELECT count(*) FROM interaction") == [(before[0][0] + 1,)]
    assert sidebar.comfy_page.errors == []
