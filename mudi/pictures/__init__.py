"""Pictures from mean-shifted noise.

args: flags; shot_args: what they ask for; pipelines: whole pipelines; loras, words:
what is loaded onto them; sampling: from a shot to its picture; reward: how far a LoRA may pull away
from its base; chat_model: layouts by a chat model; export: a start for ComfyUI.
"""
