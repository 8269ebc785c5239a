"""A page for hands: masks by clicks, captions, collages, layouts, results; see `__main__`.

server: who may ask what, and nothing of the method; folder: the photos and what is said of each;
masking, captions, collages, layouts, results: a file for each tab; page: what the browser runs.

The standard library serves it. One user on this machine asks for JSON and pictures, a dozen times
a minute; a framework would bring an event loop that the models block, and more to keep up with.
"""
