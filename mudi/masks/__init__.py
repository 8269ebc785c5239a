"""Masks by OWLv2 and SAM.

args: flags; segment: boxes and masks; folder: a folder of photos and its metadata; making: its
masks; prior: the pictures of a prior set.
"""
