"""Masks by OWLv2 and SAM; captions.

args: flags; segment: boxes, clicks and masks; folder: a folder of photos and its metadata; making:
its masks; captions: by a model that sees; prior: the pictures of a prior set.
"""
