"""`torchrun --nproc-per-node N -m isthmus.train [overrides]`, which is what every launcher runs."""

import sys

from isthmus.train.entry import main

if __name__ == "__main__":
    sys.exit(main())
