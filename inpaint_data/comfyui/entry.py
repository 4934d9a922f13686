"""The nodes of inpaint_data, put here by `inpaint-data comfyui`: this file is the `__init__.py` of their folder."""

import sys
from importlib.util import find_spec
from pathlib import Path

found = find_spec("inpaint_data")
if found is None or found.origin is None:  # ComfyUI's Python does not have it, so take the copy beside this file
    sys.path.append(str(Path(__file__).parent))

from inpaint_data.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS  # noqa: E402 - found by now

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
