"""The one waiting room of this ComfyUI, and who could answer in it."""

from __future__ import annotations

from ..feedback.gate import WaitingRoom
from .compat import tell_pages

ROOM = WaitingRoom()
"""Empty whenever no run waits: what enters leaves in `finally`."""

EVENT = "feedback_loop.gates"
ASKED_WITHIN = 10.0  # seconds


def announce() -> None:
    """Tells every open page that there is something to answer, or no longer; from any thread."""
    tell_pages(EVENT, {"pending": len(ROOM.pending())})


def somebody_is_there() -> bool:
    """Whether a page of ComfyUI is open, or whoever else asked lately what there is to answer.

    A page tells what it can do as soon as it connects; a script that only listens to its run does not.
    """
    from server import PromptServer

    # list() in one step: connections come and go on another thread.
    pages = any(one.get("feature_flags") for one in list(PromptServer.instance.sockets_metadata.values()))
    return pages or ROOM.seen_within(ASKED_WITHIN)
