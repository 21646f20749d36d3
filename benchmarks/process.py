"""Steps in processes of their own, so that memory and start-up are those of the step and not of the benchmark."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

MARK = "STEP "


def step(module: str, *arguments: object) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENTS` and return what it hands to `answer`; its other output goes to stderr."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    last = done.stdout.strip().splitlines()[-1]
    return dict(json.loads(last.removeprefix(MARK)))


def answer(**figures: Any) -> None:
    """End a step: print its figures and the peak memory of this process for the caller."""
    print(MARK + json.dumps(figures | {"peak_mb": round(peak_mb(), 1)}))


def peak_mb() -> float:
    """Largest resident memory of this process so far, in 10^6 bytes.

    /proc counts from exec on; getrusage (where there is no /proc) starts from what the parent held at the fork.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6
