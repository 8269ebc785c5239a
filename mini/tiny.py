"""Random-weight pipelines of the real classes, a few MB, built in a second or two.

    python -m mini.tiny sdxl /tmp/tiny-sdxl
    python -m mini.tiny flux /tmp/tiny-flux
    python -m mini.tiny klein /tmp/tiny-klein
    python -m mini.tiny zimage /tmp/tiny-zimage

They know nothing, so their pictures are noise; what they prove is that the code runs.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from peft import LoraConfig
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, WhitespaceSplit
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mudi import prompt_tokens
from mudi.ground.flags import flag, parse

NUM_MERGES = 2000  # of CLIP's many; common English words stay whole
TEXT_WIDTH = 32
FLUX_CHANNELS, KLEIN_CHANNELS = 16, 32
QWEN_TOKENS, QWEN_WIDTH, QWEN_LAYERS = 512, 16, 28  # klein reads the hidden states 9, 18 and 27
CHAT_TEMPLATE = (  # as Qwen3's is for a single turn, with an empty thought where it is not to think
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
TINY_SAM = "tiny"


def clip_tokenizer() -> CLIPTokenizer:
    """Build a CLIP tokenizer from the first merges of the real vocabulary."""
    return prompt_tokens.clip_tokenizer(NUM_MERGES)


def tiny_sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """Build a random SDXL of about 1.4 M parameters with the real one's latent geometry (1/8)."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    text = _clip_config(tokenizer)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=2 * TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
        norm_num_groups=8,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(4, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
    )


def t5_tokenizer() -> T5Tokenizer:
    """Train a small Unigram tokenizer on CLIP's commonest words; it can spell any ASCII text."""
    words = [token.removesuffix("</w>") for token in clip_tokenizer().get_vocab()]
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = Metaspace()
    trainer = UnigramTrainer(
        vocab_size=600,
        special_tokens=special,
        unk_token="<unk>",
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    return T5Tokenizer(vocab=[tuple(piece) for piece in pieces], extra_ids=0)


def tiny_flux(seed: int = 0) -> FluxPipeline:
    """Build a random FLUX of about 0.4 M parameters: guidance embedding, 16 latent channels."""
    torch.manual_seed(seed)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * FLUX_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    t5_config = T5Config(
        vocab_size=len(t5),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(FLUX_CHANNELS, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(_clip_config(clip)),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(t5_config),
        tokenizer_2=t5,
        transformer=transformer,
    )


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Train a small byte-level tokenizer on CLIP's commonest words, with a chat template."""
    words = [f" {token.removesuffix('</w>')}" for token in clip_tokenizer().get_vocab()]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=600, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    made = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=QWEN_TOKENS,
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def qwen_config(tokenizer: Qwen2Tokenizer, width: int, layers: int) -> Qwen3Config:
    """Return the configuration of a narrow Qwen3."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def tiny_klein(seed: int = 0) -> Flux2KleinPipeline:
    """Build a random FLUX.2-klein of about 0.3 M parameters, latents of 128 channels at 1/16."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=4 * KLEIN_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * QWEN_WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(**_vae_config(KLEIN_CHANNELS))
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(qwen_config(tokenizer, QWEN_WIDTH, QWEN_LAYERS)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def tiny_zimage(seed: int = 0) -> ZImagePipeline:
    """Build a random Z-Image of about 0.4 M parameters, 16 latent channels."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=QWEN_WIDTH,
        axes_dims=(4, 6, 6),
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # zeros would hide what the padding does
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=_vae(FLUX_CHANNELS, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=Qwen3Model(qwen_config(tokenizer, QWEN_WIDTH, layers=3)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=prompt_tokens.CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="gelu",
    )


def _vae(channels: int, **scaling: float) -> AutoencoderKL:
    """Build a VAE of factor 8 that is cheap at 1024 px."""
    return AutoencoderKL(**_vae_config(channels), **scaling)


def _vae_config(channels: int) -> dict[str, Any]:
    return {
        "sample_size": 128,
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    }


def save_tiny_owlv2(folder: Path, grid: int = 1, seed: int = 0) -> Path:
    """Save an OWLv2 with random text and class weights, and boxes that are known.

    Its box head adds nothing to OWLv2's own prior: boxes of side 1/grid of the padded square,
    centred on (i/grid, j/grid), i and j from 1. With grid 1 it is moved to the centre, so that it
    always finds one box, all of the picture.
    """
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    side = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text = {**side, "vocab_size": len(tokenizer), "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {**side, "num_attention_heads": 2, "image_size": 16 * grid, "patch_size": 16}
    config = Owlv2Config(
        text_config={**text, **ends, "max_position_embeddings": 16},
        vision_config=vision,
        projection_dim=32,
    )
    model = Owlv2ForObjectDetection(config)
    torch.nn.init.zeros_(model.box_head.dense2.weight)
    torch.nn.init.zeros_(model.box_head.dense2.bias)
    if grid == 1:
        centre = math.log(1 + 1e-4) - math.log(1e-4)  # the prior's logit of coordinate 1
        model.box_head.dense2.bias.data[:2] = -centre
    model.save_pretrained(folder)
    image_processor = Owlv2ImageProcessor(size={"height": 16 * grid, "width": 16 * grid})
    tokenizer.model_max_length = 16
    Owlv2Processor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_tiny_llava(folder: Path, answer: str, seed: int = 0) -> Path:
    """Save a LLaVA that sees pictures at 32 px and answers all questions alike.

    Its language model is a table of which word follows which: `answer`, a sentence whose words all
    differ, follows the question's last word. All else about it is random.
    """
    torch.manual_seed(seed)
    ends = ["<pad>", "</s>", "<unk>", "<image>"]
    words = answer.split()
    vocabulary = {word: i for i, word in enumerate([*ends, *words])}
    table = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    table.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=table,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    size = len(vocabulary)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, num_hidden_layers=2, image_size=32, patch_size=16),
        text_config=LlamaConfig(
            vocab_size=size,
            hidden_size=2 * size,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            pad_token_id=0,
            eos_token_id=1,
        ),
        image_token_index=vocabulary["<image>"],
        image_seq_length=4,
    )
    model = LlavaForConditionalGeneration(config).eval()
    language = model.model.language_model
    layer = language.layers[0]
    for adds_nothing in (layer.self_attn.o_proj, layer.mlp.down_proj):
        torch.nn.init.zeros_(adds_nothing.weight)
    follows = {i: i + 1 for i in range(len(ends), size - 1)} | {size - 1: 1}
    with torch.no_grad():
        language.embed_tokens.weight.copy_(torch.eye(size, 2 * size))
        model.lm_head.weight.zero_()
        for token in range(size):
            model.lm_head.weight[follows.get(token, len(ends)), token] = 1.0
    model.generation_config.update(pad_token_id=0, eos_token_id=1)
    model.save_pretrained(folder)
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for message in messages %}{% for part in message.content %}"
            "{% if part.type == 'image' %} <image> {% else %}{{ part.text }}{% endif %}"
            "{% endfor %}{% endfor %} ANSWER:"
        ),
    ).save_pretrained(folder)
    return folder


def save_tiny_dinov2(folder: Path, seed: int = 0) -> Path:
    """Save a random DINOv2 that sees pictures at 28 px; its embeddings have 32 numbers.

    Weights are drawn wide (0.3), so that two pictures' embeddings point different ways.
    """
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=32,
        mlp_ratio=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        initializer_range=0.3,
    )
    Dinov2Model(config).save_pretrained(folder)
    size, crop = {"shortest_edge": 32}, {"height": 28, "width": 28}
    processor = BitImageProcessor(
        size=size,
        crop_size=crop,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    processor.save_pretrained(folder)
    return folder


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Save a random CLIP, both towers, that sees pictures at 32 px."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    text = _clip_config(tokenizer)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH)
    CLIPModel(config).save_pretrained(folder)
    size, crop = {"shortest_edge": 32}, {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size=size, crop_size=crop)
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_random_dreamsim(folder: Path, seed: int = 0) -> str:
    """Save a random checkpoint of DreamSim's smallest type; return the type.

    The package knows no smaller network than ViT-B/32. The file is small all the same (10 MB), as
    every matrix is a view of the same random numbers.
    """
    from dreamsim.feature_extraction.vision_transformer import vit_base  # takes seconds

    kind, width, rank = "clip_vitb32", 768, 2
    generator = torch.Generator().manual_seed(seed)
    numbers = 0.05 * torch.randn(4 * width * width, generator=generator)
    vit = vit_base(patch_size=32)
    vit.pos_drop = torch.nn.LayerNorm(width)  # CLIP's norm before the first block
    weights = {"proj": numbers[: 512 * width].view(width, 512)}
    for name, weight in vit.state_dict().items():
        if weight.ndim > 1:
            weights[name] = numbers[: weight.numel()].view(weight.shape)
        else:
            weights[name] = torch.full((1,), float(name.endswith("weight"))).expand(weight.shape)
    torch.save({"state_dict": weights}, folder / f"{kind}_pretrain.pth.tar")
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=["qkv"], inference_mode=True)
    lora.save_pretrained(folder / f"{kind}_single_lora")
    adapter = {}
    for i in range(len(vit.blocks)):
        key = f"base_model.model.extractor_list.0.model.blocks.{i}.attn.qkv"
        adapter[f"{key}.lora_A.weight"] = 0.05 * torch.randn(rank, width, generator=generator)
        adapter[f"{key}.lora_B.weight"] = torch.randn(3 * width, rank, generator=generator)
    save_file(adapter, folder / f"{kind}_single_lora" / "adapter_model.safetensors")
    return kind


def save_tiny_sam(path: Path, seed: int = 0) -> str:
    """Save a random SAM checkpoint of the real classes; return its --sam_type.

    The kind is entered into segment_anything's registry, which only knows the three large ones.
    """
    torch.manual_seed(seed)
    sam_model_registry[TINY_SAM] = _build_tiny_sam
    torch.save(_build_tiny_sam().state_dict(), path)
    return TINY_SAM


def save_sam_that_sees_brightness(path: Path) -> str:
    """Save a tiny SAM whose masks are known; return its --sam_type.

    A mask is what is brighter than SAM's mean colour, at 16 px of 256, less what lies nearer to a
    negative point than to a positive one. Of the 32 channels 0 and 1 carry +brightness and
    -brightness, which every norm makes +1 and -1 (times a constant), and 2 carries points' labels.
    """
    kind = save_tiny_sam(path)
    weights = {name: torch.zeros_like(w) for name, w in torch.load(path).items()}
    patch = weights["image_encoder.patch_embed.proj.weight"]
    patch[0], patch[1] = 1.0, -1.0
    for channel in (0, 1):
        weights["image_encoder.neck.0.weight"][channel, channel] = 1.0
        weights["image_encoder.neck.2.weight"][channel, channel, 1, 1] = 1.0
    _heed_points(weights)
    upscaling = "mask_decoder.output_upscaling"
    for channel, sign in ((0, 1.0), (1, -1.0)):
        weights[f"{upscaling}.0.weight"][[0, 2], channel] = sign  # bright, and ...
        weights[f"{upscaling}.0.bias"][channel] = -1.6 * sign  # ... not nearer to a negative
        weights[f"{upscaling}.3.weight"][channel, channel] = 1.0
    norms = "image_encoder.neck.1", "image_encoder.neck.3", f"{upscaling}.1"
    for norm in (*norms, "mask_decoder.transformer.layers.0.norm4"):
        weights[f"{norm}.weight"] += 1.0
    for i in range(4):
        last = f"mask_decoder.output_hypernetworks_mlps.{i}.layers.2.bias"
        weights[last][:2] = torch.tensor([1.0, -1.0])
    torch.save(weights, path)
    return kind


def _heed_points(weights: dict[str, torch.Tensor]) -> None:
    """Let every place of the picture attend to the point that is nearest to it."""
    matrix = weights["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    matrix[0, 8] = matrix[1, 9] = 1 / 8  # an eighth of a turn each way from the centre
    sines_and_cosines = [8, 9, 8 + 16, 9 + 16]  # of x and y, as that layer lays them out
    weights["prompt_encoder.point_embeddings.0.weight"][0, 2] = -1.0
    weights["prompt_encoder.point_embeddings.1.weight"][0, 2] = 1.0
    layer = "mask_decoder.transformer.layers.0"
    for norm in ("norm1", "norm2", "norm3"):
        weights[f"{layer}.{norm}.weight"][2] = 1.0  # of the points; their places stay as they are
    for attention, label_scale in (("self_attn", 1.0), ("cross_attn_image_to_token", 0.7)):
        for i, channel in enumerate(sines_and_cosines):
            for role in ("q", "k"):
                weights[f"{layer}.{attention}.{role}_proj.weight"][i, channel] = 60.0
        weights[f"{layer}.{attention}.v_proj.weight"][0, 2] = 1.0
        weights[f"{layer}.{attention}.out_proj.weight"][2, 0] = label_scale


def _build_tiny_sam(checkpoint: str | None = None) -> Sam:
    width, image_size, patch = 32, 256, 16
    grid = image_size // patch
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=1,
            embed_dim=32,
            img_size=image_size,
            num_heads=2,
            patch_size=patch,
            out_chans=width,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=4,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(depth=1, embedding_dim=width, mlp_dim=64, num_heads=2),
        ),
    )
    if checkpoint is not None:
        sam.load_state_dict(torch.load(checkpoint))
    return sam.eval()


FAMILIES = {"sdxl": tiny_sdxl, "flux": tiny_flux, "klein": tiny_klein, "zimage": tiny_zimage}


@dataclass
class TinyArgs:
    """tiny"""

    family: str = flag("", "whose pipeline", positional=True, choices=FAMILIES)
    folder: Path = flag(Path(), "where it is saved", positional=True)
    seed: int = flag(0, "of the random weights")


def parse_args(argv: list[str] | None = None) -> TinyArgs:
    return parse(TinyArgs, __doc__, argv)


def main(args: TinyArgs) -> None:
    FAMILIES[args.family](args.seed).save_pretrained(args.folder)
    print(f"saved a random {args.family} pipeline to {args.folder}")


if __name__ == "__main__":
    main(parse_args())
