"""schemathesis makes requests of the server's own description, good and bad ones, and holds the answers against it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from feedback_loop.tests.nodes.http_calls import API

from .target import Target

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
KNOWN_PICTURE = """
[[operations]]
include-method = "GET"
parameters = {{ "path.id" = "{id}" }}
"""


def fuzzed(target: Target, examples: int) -> None:
    """So many requests for each route, after those at the bounds of its schema. A failure shows schemathesis's report,
    which has a curl command for each."""
    config = target.folder / "schemathesis.toml"
    config.write_text(KNOWN_PICTURE.format(id=target.images[0]))
    root = f"{target.server.url}{API}"
    tested = ["--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing", "--max-examples", str(examples)]
    repeatable = ["--seed", "1", "--generation-database", "none"]
    command = [sys.executable, "-P", "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    done = subprocess.run(
        [*command, f"{root}/openapi.json", "--url", root, *tested, *repeatable],
        **{"capture_output": True, "text": True, "cwd": target.folder},
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"},
    )
    config.unlink()
    assert done.returncode == 0, (done.stdout + done.stderr)[-12_000:]
    selected = re.search(r"Selected: (\d+)/\1\s+Tested: \1\s", done.stdout)
    assert selected and int(selected[1]) > 20, done.stdout[-3000:]
    assert target.server.alive()


def test_the_server_answers_as_its_description_says(target: Target) -> None:
    fuzzed(target, 5)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_server_answers_as_its_description_says_a_thousand_times(target: Target) -> None:
    fuzzed(target, 200)
