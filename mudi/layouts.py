"""Where each subject stands: drawn at random, from a file, or from a chat model's answer.

ComfyUI's nodes need it too, and have no mudi beside them: the code is in `comfyui`.
"""

from comfyui.layout_json import layout_prompt, load_layout, parse_layout
from comfyui.layouts import Layout, LayoutError, UnitBox, random_layout

__all__ = [
    "Layout",
    "LayoutError",
    "UnitBox",
    "layout_prompt",
    "load_layout",
    "parse_layout",
    "random_layout",
]
