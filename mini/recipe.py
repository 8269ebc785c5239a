"""How the miniature is personalised: chosen on its pilot pairs, which no result counts.

Rate and beta by how well each subject alone is drawn, gamma, guidance and steps by the pictures of
both: of penguin and frog 0, 33, 50 and 42 % succeed after 400, 800, 1200 and 1600 steps. DCO's
published beta of 1000 is for SDXL: here, at twice the rate, its loss was flat (3.5e-5) before a
subject was learned.
"""

from mini.world import SIZE

TRAINING: dict[str, float | int] = {  # flags of train_segmix_lora_sdxl.py
    "resolution": SIZE,
    "max_train_steps": 1200,
    "train_batch_size": 4,
    "rank": 16,
    "learning_rate": 2e-3,
    "lr_warmup_steps": 0,
    "dco_beta": 20,
}
WORD_LEARNING_RATE = 2e-4  # of --learn_words; of 2e-5, 2e-4 and 2e-3
GAMMA = 0.4  # of the mean shift
STEPS, GUIDANCE_SCALE = 30, 3.0  # of sampling; at 5 colours are harsh


def training_flags() -> str:
    """Return TRAINING as a command line."""
    return " ".join(f"--{name} {value}" for name, value in TRAINING.items())


def word_flags() -> str:
    """Return what a training with learned words has besides."""
    return f"--word_learning_rate {WORD_LEARNING_RATE:g}"
