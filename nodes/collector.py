"""Spares Python's garbage collector what stays for as long as the server runs.

While prompts run, ComfyUI has everything collected every ten seconds, which stops all threads: a quarter of a second on
a small machine, in which no click is answered and no preview is drawn. Most of that goes into looking at hundreds of
thousands of objects that libraries made when they were imported. `bench/store.py --stalls` measures it.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web


async def spare_what_stays(app: web.Application) -> None:
    """To be called once, when every pack is imported and before a model is loaded: what exists then is never looked at
    again, so a model among it could not be freed if its parts refer to each other. What imports left to be collected is
    kept, too: to look for it would take as long as is to be saved, at every start."""
    gc.freeze()


def register() -> None:
    """Waits for the server's start, which comes after the import of all packs."""
    from server import PromptServer

    PromptServer.instance.app.on_startup.append(spare_what_stays)
