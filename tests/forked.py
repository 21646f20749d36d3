"""Many runs of the command line in processes of their own, which share one import: `Forks()(arguments, environment)`.

They are forked from a process that has imported `curate.cli` and nothing else (`python tests/forked.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType


class Forks:
    """The process from which commands are forked; ends with the `with`."""

    def __enter__(self) -> Forks:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        self.process.communicate()

    def __call__(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> subprocess.CompletedProcess[str]:
        """What `curate ARGUMENTS` in `folder` ends with and says."""
        assert self.process.stdin and self.process.stdout
        with tempfile.TemporaryDirectory() as name:
            out, err = Path(name, "out"), Path(name, "err")
            asked = [["curate", *arguments], dict(environment), str(folder), str(out), str(err)]
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            code = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(asked[0], code, out.read_text("utf-8"), err.read_text("utf-8"))


def main() -> None:
    """Fork a command for each line of standard input; answer with its exit code."""
    from curate import cli

    for line in sys.stdin:
        sys.argv, environment, folder, out, err = json.loads(line)
        pid = os.fork()
        if pid:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)  # noqa: T201
            continue
        code = 1
        try:
            for number, path in enumerate((os.devnull, out, err)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(folder)
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


if __name__ == "__main__":
    main()
