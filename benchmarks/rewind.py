"""Going back behind a spike on every layout and with every sync: bit by bit the run without those samples.

python benchmarks/rewind.py [SHAPE ...]
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from support.rewinds import SHAPES, check_rewind


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, shape in enumerate(sys.argv[1:] or SHAPES):
            check_rewind(shape, Path(folder, str(number)), Path(folder, "cache"), kill=True)
            print(f"{shape}: equal", flush=True)


if __name__ == "__main__":
    main()
