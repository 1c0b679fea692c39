"""`python -m patchcaption`, and the console script `patchcaption`."""

import sys

import patchcaption  # noqa: F401  # makes `runtime` this project's package
from runtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
