"""Methods compared on any SDXL folder, the miniature by default; see compare_methods.py."""
