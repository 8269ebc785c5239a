"""Mean-shifted noise in ComfyUI: copy or link this folder into ComfyUI's custom_nodes.

A copied folder has no mudi beside it, so what nodes and mudi both need lives here, once: basics,
resizing, layouts, layout_json, placing, shift. They need torch, numpy and Pillow, and mudi imports
them.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Give ComfyUI the nodes when it asks for them: mudi checks flags and data without torch."""
    if name in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
        from . import nodes

        return getattr(nodes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
