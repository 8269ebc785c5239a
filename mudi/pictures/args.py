"""The flags of the scripts that make pictures. Knows no torch."""

from dataclasses import dataclass
from pathlib import Path

from mudi.backbones.table import BACKBONES
from mudi.ground.flags import DTYPES, flag
from mudi.segmix import COLLAGE_NEGATIVE_PROMPT

SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
RANDOM, LLM = "random", "llm"  # values of --layout that are no file
SCHEDULERS = ("euler", "euler_a", "ddim", "dpmpp_2m", "unipc")


def told_of(attribute: str) -> str:
    """Return what each backbone's row says of a thing, in words."""
    rows = BACKBONES.values()
    return ", ".join(f"{getattr(row, attribute)} for {row.title}" for row in rows)


@dataclass
class PipelineArgs:
    """model"""

    pretrained_model_name_or_path: str = flag("", "folder or hub id", origin=True, required=True)
    pretrained_vae_model_name_or_path: str | None = flag(
        None, "another VAE, as one that is safe in half precision", origin=True
    )
    revision: str | None = flag(None, "git revision of the model on the hub", origin=True)
    variant: str | None = flag(None, 'weight files to load, e.g. "fp16"', origin=True)
    cache_dir: str | None = flag(None, "where downloads from the hub are kept")
    dtype: str | None = flag(
        None,
        f"unset: fp32 on a CPU, else {told_of('precision')}",
        choices=DTYPES,
        origin=True,
    )
    cpu_offload: bool = flag(False, "keep on the GPU only the part that is at work")


@dataclass
class Wishes:
    """pictures"""

    lora: list[str] = flag(
        [], "LoRA files, folders of training runs, or hub ids", nargs="+", origin=True
    )
    lora_scale: list[float] | None = flag(None, "one for each; unset: 1", nargs="+", origin=True)
    instance_data_dir: str | None = flag(
        None, "data folder of the subjects; not needed with --gamma 0"
    )
    prompt: str | None = flag(None, "what the pictures show; the subjects by their names")
    prompt_file: Path | None = flag(None, "text file of prompts, one a line, in place of --prompt")
    negative_prompt: str | None = flag(None, "what to avoid (SDXL, Z-Image)")
    no_collage_look: bool = flag(False, f'also avoid "{COLLAGE_NEGATIVE_PROMPT}" (SDXL, Z-Image)')
    num_images: int = flag(4, "pictures a prompt", at_least=1)
    seed: int = flag(0, "picture k of a prompt has seed + k")
    output_dir: Path = flag(Path(), "for pictures, their list and the sheet", required=True)
    export_noise: Path | None = flag(
        None,
        "also write what the first picture starts from, as FILE.latent for ComfyUI's Load Latent "
        "(SDXL)",
        metavar="FILE",
    )
    overwrite: bool = flag(False, "begin anew: all pictures and their list")

    @property
    def lora_scales(self) -> list[float]:
        """One scale for each LoRA."""
        return self.lora_scale or [1.0] * len(self.lora)


@dataclass
class Start:
    """start"""

    gamma: list[str] | None = flag(
        None,
        "strength of the mean shift: a number, or ID=NUMBER a subject; 3x: three times the "
        "signal at the first step, as in a public fork's port of the authors' notebook for more "
        f"than two subjects; unset: {told_of('gamma')}",
        nargs="+",
    )
    layout: str = flag(RANDOM, "random, llm, or a JSON file")
    scales: list[str] = flag([], "relative sizes, in (0, 1]", nargs="+", metavar="ID=SCALE")
    llm_url: str | None = flag(None, "for --layout llm: base URL, as http://localhost:8000/v1")
    llm_model: str | None = flag(None, "for --layout llm: the chat model's name there")


@dataclass
class SamplingFlags:
    """sampling"""

    steps: int | None = flag(
        None, "denoising steps; unset: the pipeline's own", at_least=1, origin=True
    )
    guidance_scale: float | None = flag(None, "unset: the pipeline's own", origin=True)
    reward_guidance: list[str] | None = flag(
        None,
        "how far the LoRA may pull away from the base, beside --guidance_scale: a number (0: the "
        "base's pictures; the larger, the more likeness and the less prompt; 3 with a guidance "
        "scale of 7.5 as published), or ID=NUMBER a subject; unset: ordinary guidance",
        nargs="+",
    )
    scheduler: str | None = flag(None, "unset: the model's own", choices=SCHEDULERS, origin=True)
    batch_size: int = flag(1, "pictures at once", at_least=1)
    resolution: int | None = flag(
        None, "side (px); unset: the model's own", at_least=1, origin=True
    )
    height: int | None = flag(None, "px, where it is not --resolution", at_least=1, origin=True)
    width: int | None = flag(None, "px, where it is not --resolution", at_least=1, origin=True)


@dataclass
class PictureArgs(Wishes, Start, SamplingFlags, PipelineArgs):
    """What `inference.py` takes."""
