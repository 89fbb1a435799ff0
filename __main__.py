"""`python -m custom_nodes.feedback_loop`, run in ComfyUI's folder: tokens of a team, and backups. See --help."""

from __future__ import annotations

import sys

from .feedback.commands import main

sys.exit(main(sys.argv[1:]))
