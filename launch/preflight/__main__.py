"""A rank of a preflight, as torchrun or a launcher starts it: `python -m isthmus.launch.preflight [overrides]`."""

import sys
import warnings


def main() -> int:
    # Megatron warns at import, once a module, of what training deals with.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    from isthmus.launch.preflight.rank import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
