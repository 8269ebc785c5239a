"""Pictures from mean-shifted noise.

args: flags; shot_args: what they ask for; pipelines: whole SDXL and FLUX pipelines; sampling: from
a shot to its picture; chat_model: layouts by a chat model.
"""
