"""Files, work, errors, flags, sheets, LoRA names: knows nothing of the method."""
