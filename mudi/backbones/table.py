"""What each backbone is, as far as code outside its own file has to know. Knows no torch."""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from mudi.ground.errors import SetupError
from mudi.segmix import FLUX_STYLE, SDXL_STYLE, SENTENCES_STYLE, SegMixStyle

# How pipelines guide: null and prompt are rows of one call of the network, or prompt and null are
# items of its lists, or have a call each, or the network is distilled for guidance, so that there
# is no null
ROWS, LISTS, CALLS, BUILT_IN = "rows", "lists", "calls", "built in"


@dataclass(frozen=True)
class Backbone:
    """A base model's kind.

    Attributes:
        name: the word of flags and tables, and of its file beside this one.
        title: as people write it.
        pipeline: the exact name of its pipeline's class in diffusers.
        style: its Seg-Mix.
        denoiser: the pipeline's part that trains.
        tokenizer: the pipeline's part that cuts the words of long prompts off.
        precision: of frozen weights on a GPU, a word of `mudi.ground.flags.DTYPES`.
        size_unit: what a picture's sides must be divisible by (px).
        gamma: default strength of the mean shift.
        flow: trained by flow matching: sampling starts without signal, by one scheduler.
        guidance: how its pipeline guides; one of the words above.
        negative_prompt: its pipeline takes one.
        script: its training script, from the repository's root.
        unguided: the guidance scale at which its pipeline asks for the prompt alone.
        float_noise: its pipeline draws the noise in float32, whatever the network's precision.
        thinks: its text encoder's chat template lets it think; None: it has none.
        no_words: why it can't learn words; "": it can.
    """

    name: str
    title: str
    pipeline: str
    style: SegMixStyle
    denoiser: str
    tokenizer: str
    precision: str
    size_unit: int
    gamma: float
    flow: bool
    guidance: str
    negative_prompt: bool
    script: str
    thinks: bool | None = None
    unguided: float = 1.0
    float_noise: bool = False
    no_words: str = ""

    @property
    def pipeline_class(self) -> Any:
        """The pipeline's class."""
        return getattr(import_module("diffusers"), self.pipeline)

    @property
    def module(self) -> ModuleType:
        """The backbone's file: `SPACE`, `to_pipeline(latents)`, what its training script calls."""
        return import_module(f"mudi.backbones.{self.name}")

    def added_tokens(self, tokenizer: Any) -> int:
        """Return how many tokens its text encoder reads besides a prompt's own."""
        if self.thinks is None:
            return tokenizer.num_special_tokens_to_add()
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.thinks,
        )
        return len(tokenizer(chat).input_ids)


SDXL = Backbone(
    name="sdxl",
    title="SDXL",
    pipeline="StableDiffusionXLPipeline",
    style=SDXL_STYLE,
    denoiser="unet",
    tokenizer="tokenizer",
    precision="fp16",
    size_unit=8,
    gamma=0.4,  # experiments/RESULTS.md
    flow=False,
    guidance=ROWS,
    negative_prompt=True,
    script="train_segmix_lora_sdxl.py",
)
FLUX = Backbone(
    name="flux",
    title="FLUX",
    pipeline="FluxPipeline",
    style=FLUX_STYLE,
    denoiser="transformer",
    tokenizer="tokenizer_2",  # T5's; CLIP gives one vector of all it sees
    precision="bf16",
    size_unit=16,  # the VAE reduces by 8, packing by 2
    gamma=0.0,  # does without
    flow=True,
    guidance=BUILT_IN,
    negative_prompt=False,
    script="flux/train_segmix_lora_flux.py",
    no_words="it reads prompts by T5, which knows no learned word of CLIP's; of CLIP it takes "
    "the pooled vector alone, one for the whole prompt, which can't tell two subjects apart",
)
KLEIN = Backbone(
    name="klein",
    title="FLUX.2-klein",
    pipeline="Flux2KleinPipeline",
    style=SENTENCES_STYLE,
    denoiser="transformer",
    tokenizer="tokenizer",
    precision="bf16",
    size_unit=16,  # the VAE reduces by 8, its patches by 2
    gamma=0.0,  # as FLUX; not tried on real weights
    flow=True,
    guidance=CALLS,
    negative_prompt=False,
    script="flux2/train_segmix_lora_klein.py",
    thinks=False,
    no_words="it reads prompts by Qwen3, and learned words are CLIP's",
)
ZIMAGE = Backbone(
    name="zimage",
    title="Z-Image",
    pipeline="ZImagePipeline",
    style=SENTENCES_STYLE,
    denoiser="transformer",
    tokenizer="tokenizer",
    precision="bf16",
    size_unit=16,  # the VAE reduces by 8, the transformer's patches by 2
    gamma=0.0,  # as FLUX; not tried on real weights
    flow=True,
    guidance=LISTS,
    negative_prompt=True,
    script="zimage/train_segmix_lora_zimage.py",
    thinks=True,
    unguided=0.0,
    float_noise=True,
    no_words="it reads prompts by Qwen3, and learned words are CLIP's",
)
BACKBONES = {backbone.name: backbone for backbone in (SDXL, FLUX, KLEIN, ZIMAGE)}


def backbone_of(pipeline_class: str) -> Backbone:
    """Return the backbone whose pipeline has exactly this class name.

    Raises:
        SetupError: none has.
    """
    for backbone in BACKBONES.values():
        if backbone.pipeline == pipeline_class:
            return backbone
    known = ", ".join(backbone.pipeline for backbone in BACKBONES.values())
    raise SetupError(f"a {pipeline_class}; {known} are known here")
