"""Compiles a file, unless this test run did so before: `compile_once.py FOLDER COMPILER ARGUMENTS...`.

CMake puts it before its compiler where CMAKE_CXX_COMPILER_LAUNCHER says so. Tests build the native kernels half a dozen
times, half a minute of a core each.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def main() -> None:
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    if "-c" not in command or "-o" not in command:
        os.execvp(command[0], command)
    output, source = Path(_after(command, "-o")), Path(_after(command, "-c"))
    stored = folder / f"{_digest(command, source)}.o"
    if not stored.exists():
        code = subprocess.run(command, check=False).returncode
        if code:
            sys.exit(code)
        part = stored.with_suffix(f".{os.getpid()}")
        shutil.copyfile(output, part)
        part.rename(stored)
        return
    shutil.copyfile(stored, output)
    if "-MF" in command:  # what make reads to know when to compile again
        Path(_after(command, "-MF")).write_text(f"{output}: {source}\n", encoding="utf-8")


def _after(command: Sequence[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def _digest(command: Sequence[str], source: Path) -> str:
    """Return the SHA-256 of all that an object depends on, wherever its source lies: flags, source and headers."""
    of_build = {_after(command, flag) for flag in ("-o", "-c", "-MF", "-MT") if flag in command}
    included = [one.removeprefix("-I") for one in command if one.startswith("-I")]
    flags = [one for one in command[1:] if one not in of_build and not one.startswith("-I")]
    compiler = Path(shutil.which(command[0]) or command[0]).resolve()  # which has several names, and CMake takes any
    digest = hashlib.sha256(repr((str(compiler), flags, source.name)).encode())
    for folder in (*map(Path, included), source.parent):
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                digest.update(repr((str(file.relative_to(folder)), file.read_bytes())).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
