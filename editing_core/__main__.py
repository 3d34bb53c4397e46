"""`python -m editing_core`: the command line."""

import sys

from editing_core.cli import run


def main() -> None:
    """Entry point of the console script `editscope`."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
