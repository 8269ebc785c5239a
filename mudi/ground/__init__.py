"""Knows nothing of the method.

errors, flags, files, locks, work (long lists, split and continued), devices, memory, sheets,
lora_names (what LoRA files hold).
"""
