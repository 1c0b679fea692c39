"""`python -m runtime`: the command `patchcaption` in a clone."""

import sys

from runtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
