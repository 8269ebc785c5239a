"""Masks by OWLv2 and SAM: a folder of photos, prior sets."""
