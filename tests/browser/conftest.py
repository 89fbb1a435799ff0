"""A real Chromium on the real frontend. `comfy_page` is ComfyUI, loaded, with an empty graph."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from feedback_loop import start
from feedback_loop.tests.browser.captured import Captured
from feedback_loop.tests.browser.sidebar_page import Sidebar, fill
from feedback_loop.tests.comfy_host import ComfyServer

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

PATIENCE = 120_000
"""Milliseconds that a page may take for anything: the machine may be busy with other work."""

# The workflow of the last visit is opened after the application is there, and would replace one loaded before that.
LOADED = "() => window.app?.graph && window.app?.extensionManager?.workflow?.activeWorkflow"


class ComfyPage:
    """ComfyUI in the browser: what a user does, in a few verbs. `page` is playwright's own."""

    def __init__(self, page: Page, server: ComfyServer) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self) -> ComfyPage:
        self.page.goto(self.server.url)
        self.page.wait_for_function(LOADED, timeout=180_000)
        return self

    def set_vue_nodes(self, enabled: bool) -> ComfyPage:
        """Switches between the classic and the Vue renderer ("Nodes 2.0") and reloads."""
        script = "value => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', value)"
        self.page.evaluate(script, enabled)
        return self.open()

    def load(self, workflow: dict[str, Any] | Path) -> ComfyPage:
        """Loads a workflow in UI format, as dropping its file on the canvas does."""
        graph = json.loads(workflow.read_text("utf-8")) if isinstance(workflow, Path) else workflow
        self.page.evaluate("graph => window.app.loadGraphData(graph)", graph)
        return self

    def load_prompt(self, prompt: dict[str, Any]) -> ComfyPage:
        """Loads a prompt in API format; the frontend builds the nodes and lays them out."""
        self.page.evaluate("prompt => window.app.loadApiJson(prompt, 'test')", prompt)
        return self

    def queue(self, seconds: float = 300) -> dict[str, Any]:
        """Queues the graph that is open and waits for its end; returns the history entry."""
        before = set(self.server.get("/history"))
        self.page.evaluate("() => window.app.queuePrompt(0, 1)")
        new = self.poll(lambda: set(self.server.get("/history")) - before, seconds)
        return self.server.wait(new.pop(), seconds)

    def poll(self, question, seconds: float):
        """The first true answer to `question`; the page keeps running meanwhile, as it would not during a sleep."""
        for _ in range(int(seconds * 5)):
            if answer := question():
                return answer
            self.page.wait_for_timeout(200)
        raise AssertionError(f"nothing after {seconds} s; the page said {self.errors}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for each module and no longer: while playwright is open, its event loop runs in this thread, and a test that
    comes later and calls `asyncio.run` would be refused."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=start.find_chromium(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


@pytest.fixture
def comfy_page(page: Page, comfy_server: ComfyServer) -> ComfyPage:
    comfy_server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False})
    return ComfyPage(page, comfy_server).open()


@pytest.fixture(scope="module")
def shared_comfy_page(browser: Browser, comfy_server: ComfyServer) -> Iterator[ComfyPage]:
    """One page for all tests of a module, since loading ComfyUI takes longer than most of them."""
    comfy_server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False})
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(PATIENCE)
    yield ComfyPage(context.new_page(), comfy_server).open()
    context.close()


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def renderer(request: pytest.FixtureRequest, shared_comfy_page: ComfyPage) -> ComfyPage:
    """The shared page with each of the two ways to draw nodes."""
    return shared_comfy_page.set_vue_nodes(request.param)


@pytest.fixture
def captured(renderer: ComfyPage) -> Iterator[Captured]:
    captured = Captured(renderer)
    yield captured
    captured.close()


@pytest.fixture
def sidebar(shared_comfy_page: ComfyPage) -> Iterator[Sidebar]:
    yield Sidebar(shared_comfy_page)
    shared_comfy_page.page.unroute_all()
    shared_comfy_page.page.evaluate("() => document.querySelectorAll('dialog.fl-full').forEach((view) => view.close())")


@pytest.fixture
def three(sidebar: Sidebar) -> list[str]:
    """Three pictures in a collection of their own, listed in the sidebar; ids, newest first."""
    collection = f"sidebar {uuid.uuid4()}"
    store = sidebar.store()
    ids = fill(store, collection, ["a red fox", "a green frog", "a red lantern"])
    store.close()
    sidebar.look_at(collection)
    sidebar.expect_shown(ids)
    return ids
