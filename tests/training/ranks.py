"""What torchrun starts in the tests: `ranks.py FILE` runs the command for each list of arguments in it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path


def main() -> int:
    spec = importlib.util.spec_from_file_location("lives", Path(__file__).with_name("lives.py"))
    assert spec is not None and spec.loader is not None
    lives = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lives)
    lives.register_pack()
    from feedback_loop.training import distributed

    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        if status := distributed.main(arguments):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
