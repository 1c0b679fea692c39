"""`python -m runtime`: the command `patchcaption`, in a folder that has no other module of that name."""

import sys

from patchcaption.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
