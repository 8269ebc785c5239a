"""Load learned words as ComfyUI loads embeddings, and compare what its prompts hold with them.

    PYTHONPATH=. python tests/by_hand/comfyui_words.py COMFYUI

COMFYUI is a checkout, and Python one that has its requirements. The words have SDXL's sizes and
random numbers; no model is loaded. It prints a line an encoder.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mudi.learned_words import EMBEDDINGS, LearnedWords
from mudi.words import words_of

SIZES = {"clip_l": 768, "clip_g": 1280}
COUNTS = (1, 2)  # tokens of "robot" and of "teddy bear"
PROMPT = "a photo of a embedding:olis_robot, and a embedding:hta_teddy_bear on a beach"
PLAIN = "a photo of a robot, and a teddy bear on a beach"


def main(args: argparse.Namespace) -> None:
    sys.path.insert(0, str(args.comfyui))
    from comfy.cli_args import args as settings

    settings.cpu = True
    from comfy.sdxl_clip import SDXLTokenizer

    words = words_of(["olis robot", "hta teddy bear"])
    rows = [{name: torch.randn(n, size) for name, size in SIZES.items()} for n in COUNTS]
    with TemporaryDirectory() as folder:
        LearnedWords(words, rows).save_embeddings(Path(folder))
        tokenizer = SDXLTokenizer(embedding_directory=str(Path(folder) / EMBEDDINGS))
        found, plain = (tokenizer.tokenize_with_weights(text) for text in (PROMPT, PLAIN))
    for name, key in zip(SIZES, "lg", strict=True):
        [ours], [base] = found[key], plain[key]
        places = [i for i, (token, _) in enumerate(ours) if isinstance(token, torch.Tensor)]
        loaded = torch.stack([ours[i][0] for i in places])
        error = (loaded - torch.cat([own[name] for own in rows])).abs().max().item()
        pairs = enumerate(zip(ours, base, strict=True))
        same = sum(a == b for i, (a, b) in pairs if i not in places)
        print(
            f"{name}: {len(places)} vectors at places {places}, largest error {error:g}; "
            f"{same} of {len(ours) - len(places)} other tokens are those of the noun's prompt"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comfyui", type=Path)
    main(parser.parse_args())
