"""The model card beside the weights, and the upload to the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from mudi.backbones.table import backbone_of
from mudi.ground.errors import first_line
from mudi.ground.files import write_text
from mudi.ground.flags import DTYPES
from mudi.learned_words import LearnedWords
from mudi.lora import WEIGHTS_NAME
from mudi.metadata import Subjects
from mudi.training.args import TrainingArgs
from mudi.training.planning import VALIDATION
from mudi.training.saving import save_results
from mudi.training.stats import STATS_NAME
from mudi.words import Vocabulary, words_of

logger = get_logger("mudi")

# What a run needs to be continued or watched, and nobody who uses the result.
NOT_UPLOADED = ["checkpoint-*/**", "wandb/**", STATS_NAME, ".*"]


WORDS_NOTE = """
The names were learned as words of their own. MuDI's `inference.py` and notebooks load them with the
LoRA and take the names. Elsewhere write a subject's token where its name would stand:

{listed}

ComfyUI: put `embeddings/*.safetensors` into `models/embeddings` and write `embedding:` before the
token. A1111: put them into `embeddings`. diffusers:
"""
# The last line: SDXL's configuration has a wrong id, at which the pooled vector would be misread
WORDS_SNIPPET = """for token in {tokens}:
    state = load_file(f"embeddings/{{token}}.safetensors")
    for name, tokenizer, encoder in (
        ("clip_l", pipeline.tokenizer, pipeline.text_encoder),
        ("clip_g", pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        pipeline.load_textual_inversion(
            state[name], token=token, tokenizer=tokenizer, text_encoder=encoder
        )
pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id
"""


def repository_name(args: TrainingArgs) -> str:
    """Return the hub repository that --hub_model_id or --output_dir names."""
    return args.hub_model_id or Path(args.output_dir).resolve().name


def check_login(args: TrainingArgs) -> list[str]:
    """Complain at the start of a run if the upload at its end can't work."""
    if not args.push_to_hub:
        return []
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError:
        return ["--push_to_hub: not logged in; run `hf auth login` or set HF_TOKEN"]
    except (HfHubHTTPError, OSError) as error:
        return [f"--push_to_hub: the hub does not accept the login ({first_line(error)})"]
    return []


def write_model_card(folder: Path, args: TrainingArgs, subjects: Subjects, pipeline: str) -> Path:
    """Write README.md: what was trained on what, and a snippet that loads it.

    Args:
        pipeline: name of the diffusers pipeline.
    """
    base = args.base
    precision = DTYPES[backbone_of(pipeline).precision]
    data = ModelCardData(
        base_model=None if Path(base).is_dir() else base,  # the hub refuses what is no hub id
        library_name="diffusers",
        tags=["text-to-image", "lora", "diffusers-training", "mudi", "seg-mix"],
    )
    names = "\n".join(f"- `{name}` ({key})" for key, name in subjects.names.items())
    images = sorted(p.name for p in (folder / VALIDATION).glob("*.png"))[-4:]
    gallery = "\n".join(f"![{args.validation_prompt}]({VALIDATION}/{name})" for name in images)
    prompt = args.validation_prompt or "a photo of " + " and ".join(
        f"a {name}" for name in subjects.names.values()
    )
    notes, load, imports = "", "", ""
    if args.learn_words:
        words = words_of(subjects.names.values())
        prompt = Vocabulary(words).replace(prompt, lambda word: word.token)
        listed = "\n".join(f"- {word.name}: `{word.token}`" for word in words)
        notes = WORDS_NOTE.format(listed=listed)
        imports = "from safetensors.torch import load_file\n"
        load = WORDS_SNIPPET.format(tokens=[word.token for word in words])
    return write_text(
        folder / "README.md",
        f"""---
{data.to_yaml()}
---

# {repository_name(args).split("/")[-1]}: a LoRA of {len(subjects.names)} subjects

A LoRA of rank {args.rank} for `{base}`, trained with Seg-Mix
([MuDI](https://arxiv.org/abs/2404.04243)) so that its subjects can appear in one picture without
their identities mixing. Use these names in prompts:

{names}
{notes}
```python
import torch
from diffusers import {pipeline}
{imports}
pipeline = {pipeline}.from_pretrained("{base}", dtype=torch.{precision}).to("cuda")
pipeline.load_lora_weights("{repository_name(args)}", weight_name="{WEIGHTS_NAME}")
{load}image = pipeline(prompt="{prompt}").images[0]
```

{len(subjects.pictures)} photos, resolution {args.resolution}, seed {args.seed}; all arguments are
in `run_arguments.json`.

{gallery}
""",
    )


def finish(
    args: TrainingArgs,
    accelerator: Accelerator,
    subjects: Subjects,
    pipeline_class: Any,
    models: Mapping[str, Any],
    step: int,
    words: LearnedWords | None = None,
) -> None:
    """Write the results and the model card, upload them if asked for, close the trackers.

    Args:
        step: the run's last.
        words: learned ones.
    """
    if accelerator.is_main_process:
        folder = Path(args.output_dir)
        save_results(folder, args, step, pipeline_class, models, subjects.names, words=words)
        write_model_card(folder, args, subjects, pipeline_class.__name__)
        logger.info(f"the LoRA is {folder / WEIGHTS_NAME}")
        if args.push_to_hub:
            logger.info(f"uploaded: {push(folder, args)}")
    accelerator.end_training()


def push(folder: Path, args: TrainingArgs) -> str:
    """Upload the results (not the resumable states and logs); return the commit's address."""
    api = HfApi()
    repository = api.create_repo(repository_name(args), exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message="End of training",
        ignore_patterns=[*NOT_UPLOADED, f"{args.logging_dir}/**"],
    )
    return commit.commit_url
