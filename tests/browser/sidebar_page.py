"""The sidebar "Feedback", open in the browser, and pictures put into the server's store behind its back."""

from __future__ import annotations

import sqlite3
from typing import Any

import numpy as np
from playwright.sync_api import Locator, expect

from feedback_loop.feedback.records import Generation
from feedback_loop.feedback.store import FeedbackStore

API = "/feedback_loop/v1"
expect.set_options(timeout=60_000)  # the machine may be busy with other work


class Sidebar:
    """The sidebar, open, and the verbs of a test."""

    def __init__(self, comfy_page: Any) -> None:
        self.comfy_page, self.page, self.server = comfy_page, comfy_page.page, comfy_page.server
        self.element = self.page.locator(".fl-side")
        self.list = self.page.locator(".fl-list")
        if not self.element.is_visible():
            self.page.locator(".feedback-loop-tab-button").click()
        expect(self.element).to_be_visible()

    def store(self) -> FeedbackStore:
        """The server's own store, written by this process too."""
        folder = self.server.base_directory / "user" / "__feedback_loop"
        folder.mkdir(parents=True, exist_ok=True)
        return FeedbackStore(f"sqlite:///{folder / 'feedback.sqlite3'}", folder / "media")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def more_filters(self) -> None:
        if self.page.locator(".fl-more:not([open])").count():
            self.page.locator(".fl-more summary").click()

    def look_at(self, collection: str) -> None:
        """Chooses a collection, as somebody does who opens the panel after its pictures came."""
        self.tab("Pictures")
        self.page.locator(".feedback-loop-tab-button").click()
        expect(self.element).to_have_count(0)
        self.page.locator(".feedback-loop-tab-button").click()
        self.more_filters()
        self.page.get_by_role("button", name="Clear").click()
        option = self.page.get_by_label("Collection", exact=True).locator(f'option[value="{collection}"]')
        expect(option).to_have_count(1)
        self.page.get_by_label("Collection", exact=True).select_option(collection)

    def look_at_everything(self) -> None:
        """Lists all pictures, newest first."""
        self.tab("Pictures")
        self.more_filters()
        self.page.get_by_role("button", name="Clear").click()

    def row(self, image_id: str) -> Locator:
        return self.page.locator(f'.fl-row[data-image-id="{image_id}"]')

    def star(self, image_id: str, stars: int) -> Locator:
        return self.row(image_id).locator(f'.fl-star[data-stars="{stars}"]')

    def rows_of(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """What a query says, straight from the database file."""
        path = self.server.base_directory / "user" / "__feedback_loop" / "feedback.sqlite3"
        connection = sqlite3.connect(f"file:{path}?mode=ro", timeout=60, uri=True)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def expect_rows(self, rows: list[tuple[Any, ...]], query: str, *values: str) -> None:
        self.comfy_page.poll(lambda: self.rows_of(query, *values) == rows, 60)

    def shown(self) -> list[str]:
        """The ids of the rows in the document, from top to bottom."""
        script = """rows => rows.filter(row => !row.hidden)
            .sort((a, b) => a.getAttribute('aria-posinset') - b.getAttribute('aria-posinset'))
            .map(row => row.dataset.imageId)"""
        return self.page.locator(".fl-row").evaluate_all(script)

    def expect_shown(self, ids: list[str]) -> None:
        self.comfy_page.poll(lambda: self.shown() == ids, 60)

    def stored(self, image_id: str) -> list[tuple[float, str]]:
        ratings = self.server.get(f"{API}/images/{image_id}")["ratings"]
        return [(rating["value"], rating["rater"]) for rating in ratings]

    def expect_stored(self, image_id: str, ratings: list[tuple[float, str]]) -> None:
        self.comfy_page.poll(lambda: self.stored(image_id) == ratings, 30)


def fill(store: FeedbackStore, collection: str, prompts: list[str]) -> list[str]:
    """Records one small picture for each prompt, in one transaction for each thousand; ids, newest first."""
    rng = np.random.default_rng(5)
    pixels = [rng.integers(0, 255, (24, 24, 3), dtype=np.uint8) for _ in range(min(50, len(prompts)))]
    made = [(pixels[i % len(pixels)], Generation(prompt=prompt, seed=str(i))) for i, prompt in enumerate(prompts)]
    ids = [id_ for at in range(0, len(made), 1000) for id_ in store.add_images(made[at : at + 1000], collection)]
    return ids[::-1]
