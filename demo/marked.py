"""Parts of a page that a command writes, between `<!-- name -->` and `<!-- /name -->`."""

from __future__ import annotations

import re


def filled(page: str, name: str, text: str) -> str:
    """The page with this text, of whole lines, as the part `name`. Raises ValueError where it has no such part."""
    marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not marks.search(page):
        raise ValueError(f"The page has no part between <!-- {name} --> and <!-- /{name} -->.")
    return marks.sub(lambda found: found[1] + text + found[2], page)
