"""patchcaption: describe any region of an image in words.

The public names of `runtime`, under the project's own name.

>>> from patchcaption import Box, Captioner
>>> captioner = Captioner.load("engines/demo")
>>> captioner.caption("export/demo/sample/scene.jpg", [Box(276, 174, 507, 399)])[0].text
'a large striped red triangle'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from patchcaption._packages import claim

claim("runtime")

if TYPE_CHECKING:
    from runtime import *  # noqa: F403  # all public names, which `runtime.__all__` lists
    from runtime import __all__ as __all__
    from runtime import __version__ as __version__


def __getattr__(name: str) -> Any:
    """Return a public name of `runtime`, whose import takes seconds: the command is interruptible meanwhile."""
    runtime = import_module("runtime")
    if name == "__all__" or name in runtime.__all__:
        return globals().setdefault(name, getattr(runtime, name))
    raise AttributeError(f"module 'patchcaption' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *import_module("runtime").__all__]
