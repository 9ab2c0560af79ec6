"""`torchrun --nproc-per-node N -m isthmus.train [overrides]`, which is what every launcher runs."""

import os
import sys

from isthmus.train.entry import main

if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in launch/cli.py; torch is not loaded yet
    sys.exit(main())
