"""patchcaption: describe any region of an image in words.

The public names of `runtime`, under the project's own name.

>>> from patchcaption import Box, Captioner
>>> captioner = Captioner.load("engines/demo")
>>> captioner.caption("export/demo/sample/scene.jpg", [Box(276, 174, 507, 399)])[0].text
'a large striped red triangle'
"""

from patchcaption._runtime import load_runtime

load_runtime()

from runtime import *  # noqa: E402, F403  # all public names, which `runtime.__all__` lists
from runtime import __all__ as __all__  # noqa: E402
from runtime import __version__ as __version__  # noqa: E402
