"""What the training scripts share.

args: flags; checks: what can be wrong with them and the data; planning: steps, epochs, seed;
runtime: accelerator, trackers, progress; optimizers; checkpoints, saving, publish: what is written;
targets: --lora_targets; validation: images; words: --learn_words; dry_run: what a run needs.
"""
