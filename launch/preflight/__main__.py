"""A rank of a preflight, as torchrun or a launcher starts it: `python -m isthmus.launch.preflight [overrides]`."""

import sys

from isthmus.launch.preflight.rank import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
