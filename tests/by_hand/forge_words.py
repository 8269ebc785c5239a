"""Load learned words as Forge, which continues A1111, loads embeddings; compare what prompts hold.

    PYTHONPATH=. python tests/by_hand/forge_words.py FORGE

FORGE is a checkout. Its loader, prompt splitter and embedding layer run as they are, one engine for
each of SDXL's encoders; only its settings and device choice, which need the whole program, stand in
by two attributes. The words have SDXL's sizes and random numbers; no model is loaded.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace

import torch
from transformers import CLIPTokenizer

from mudi.learned_words import EMBEDDINGS, LearnedWords
from mudi.words import words_of

SIZES = {"clip_l": 768, "clip_g": 1280}
TOKENIZERS = {"clip_l": "tokenizer", "clip_g": "tokenizer_2"}
SDXL = "backend/huggingface/stabilityai/stable-diffusion-xl-base-1.0"
COUNTS = (1, 2)  # tokens of "robot" and of "teddy bear"
PROMPT = "a photo of a (olis_robot:1.2), and a hta_teddy_bear on a beach"
PLAIN = "a photo of a (robot:1.2), and a teddy bear on a beach"


def main(args: argparse.Namespace) -> None:
    sys.path.insert(0, str(args.forge))
    settings, memory = ModuleType("modules.shared"), ModuleType("backend.memory_management")
    settings.opts = SimpleNamespace(emphasis="Original")
    sys.modules |= {settings.__name__: settings, memory.__name__: memory}
    import backend

    backend.memory_management = memory
    from backend.text_processing.classic_engine import ClassicTextProcessingEngine

    words = words_of(["olis robot", "hta teddy bear"])
    rows = [{name: torch.randn(n, size) for name, size in SIZES.items()} for n in COUNTS]
    with TemporaryDirectory() as folder:
        LearnedWords(words, rows).save_embeddings(Path(folder))
        for name, size in SIZES.items():
            tokenizer = CLIPTokenizer.from_pretrained(args.forge / SDXL / TOKENIZERS[name])
            layers = SimpleNamespace(token_embedding=torch.nn.Embedding(len(tokenizer), size))
            encoder = SimpleNamespace(
                transformer=SimpleNamespace(text_model=SimpleNamespace(embeddings=layers))
            )
            engine = ClassicTextProcessingEngine(
                encoder,
                tokenizer,
                embedding_dir=str(Path(folder) / EMBEDDINGS),
                embedding_key=name,
                embedding_expected_shape=sum(SIZES.values()),
            )
            [ours], _ = engine.tokenize_line(PROMPT)
            [base], _ = engine.tokenize_line(PLAIN)
            engine.embeddings.fixes = [ours.fixes]
            [held] = layers.token_embedding(torch.tensor([ours.tokens]))
            [plain] = layers.token_embedding(torch.tensor([base.tokens]))
            at = {fix.embedding.name: fix.offset + 1 for fix in ours.fixes}  # after the start token
            spans = zip(words, COUNTS, strict=True)
            places = [at[word.token] + i for word, n in spans for i in range(n)]
            error = (held[places] - torch.cat([own[name] for own in rows])).abs().max().item()
            same = sum(torch.equal(held[i], plain[i]) for i in range(len(held)) if i not in places)
            print(
                f"{name}: {len(places)} vectors at places {places}, largest error {error:g}; "
                f"{same} of {len(held) - len(places)} other tokens are those of the noun's prompt; "
                f"weights are {'' if ours.multipliers == base.multipliers else 'not '}the same"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("forge", type=Path)
    main(parser.parse_args())
