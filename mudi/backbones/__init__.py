"""What differs between base models: one file each.

table: what a backbone is, in a row; sdxl, flux: load its parts, encode prompts, schedule, predict;
parts: load or build networks; quantization: in fewer bits.
"""
