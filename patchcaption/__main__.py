"""`python -m patchcaption`, and the console script `patchcaption`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from patchcaption._interrupts import INTERRUPTED, ending_at_once
from patchcaption._packages import HiddenModuleWarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    warnings.simplefilter("ignore", HiddenModuleWarning)  # the folder that a command is run in is no program
    try:
        with ending_at_once():
            from patchcaption._commands import TOOLS, run_tool
            from runtime.cli.main import import_command
            from runtime.cli.main import main as run_runtime

            import_command(given[0] if given else "")
        if given and given[0] in TOOLS:
            return run_tool(given[0], given[1:])
        return run_runtime(given, {name: tool.help for name, tool in TOOLS.items()})
    except KeyboardInterrupt:  # between two parts that handle it
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
