"""`torchrun --nproc-per-node N -m curate.train RECIPE [--set a.b=c]`: the same as `curate train`."""

from __future__ import annotations

import sys

from curate.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
