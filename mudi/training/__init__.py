"""What the training scripts share: flags, checks, the run, optimizers, checkpoints, results."""
