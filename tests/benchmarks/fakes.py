"""Tiny benchmarks for the runner: ``python -m tests.benchmarks.fakes BEHAVIOUR --json FILE [--zoo FOLDER]``.

Nothing of this project is imported: a process takes a fraction of a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

SLEEP = "import time; time.sleep(300)"


def main() -> int:
    """Behave: ``ends``, ``misses`` a goal, ``crashes``, ``hangs`` with a child, or is ``silent``; litter."""
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--zoo", type=Path)
    options = parser.parse_args()
    if options.behaviour == "silent":
        return 0
    Path("litter").touch()
    options.json.write_text(json.dumps({"benchmark": options.behaviour, "zoo": options.zoo is not None}))
    if options.behaviour == "crashes":
        raise RuntimeError("no such kernel")
    if options.behaviour == "hangs":
        print(subprocess.Popen([sys.executable, "-c", SLEEP]).pid, flush=True)
        time.sleep(300)
    return 3 if options.behaviour == "misses" else 0


if __name__ == "__main__":
    sys.exit(main())
