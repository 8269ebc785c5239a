"""Knows nothing of the method.

errors, flags, files, locks, work (long lists, split and continued), devices, memory, sheets,
chat (one question to a served model), lora_families, lora_names, lora_outline (what LoRA files
hold, and for which base models).
"""
