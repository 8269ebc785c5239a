"""The published networks' configurations, so that they can be built without a download.

The values are those of the `config.json` files of stabilityai/stable-diffusion-xl-base-1.0,
black-forest-labs/FLUX.1-dev and FLUX.2-klein-base-4B, Tongyi-MAI/Z-Image,
google/owlv2-base-patch16-ensemble and facebook/dinov2-base.
"""

from dataclasses import dataclass
from typing import Any

from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 1024,
    "force_upcast": True,
}
_CLIP_L: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}


@dataclass(frozen=True)
class Network:
    """A network of diffusers (config a dict) or of transformers (config an instance).

    Attributes:
        parameters: how many that makes.
    """

    kind: Any
    config: Any
    parameters: int


SDXL: dict[str, Network] = {
    "unet": Network(
        UNet2DConditionModel,
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 2,
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        2_567_463_684,
    ),
    "vae": Network(
        AutoencoderKL, {**_VAE, "latent_channels": 4, "scaling_factor": 0.13025}, 83_653_863
    ),
    "text_encoder": Network(CLIPTextModel, CLIPTextConfig(**_CLIP_L), 123_060_480),
    "text_encoder_2": Network(
        CLIPTextModelWithProjection,
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            projection_dim=1280,
            hidden_act="gelu",
        ),
        694_659_840,
    ),
}
SDXL_SCHEDULER = EulerDiscreteScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    timestep_spacing="leading",
    steps_offset=1,
)

FLUX: dict[str, Network] = {
    "transformer": Network(
        FluxTransformer2DModel,
        {
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
        },
        11_901_408_320,
    ),
    "vae": Network(
        AutoencoderKL,
        {
            **_VAE,
            "latent_channels": 16,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        83_819_683,
    ),
    "text_encoder": Network(CLIPTextModel, CLIPTextConfig(**_CLIP_L), 123_060_480),
    "text_encoder_2": Network(
        T5EncoderModel,
        T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
        ),
        4_762_310_656,
    ),
}
FLUX_SCHEDULER = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)

_QWEN3_4B = Qwen3Config(
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40960,
    rope_theta=1_000_000,
    tie_word_embeddings=True,
)
KLEIN: dict[str, Network] = {
    "transformer": Network(
        Flux2Transformer2DModel,
        {
            "patch_size": 1,
            "in_channels": 128,
            "num_layers": 5,
            "num_single_layers": 20,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        3_875_544_576,
    ),
    "vae": Network(
        AutoencoderKLFlux2,
        {**{k: v for k, v in _VAE.items() if k != "force_upcast"}, "latent_channels": 32},
        84_046_115,
    ),
    "text_encoder": Network(
        Qwen3ForCausalLM,
        _QWEN3_4B,
        4_022_468_096,
    ),
}
KLEIN_SCHEDULER = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)

ZIMAGE: dict[str, Network] = {
    "transformer": Network(
        ZImageTransformer2DModel,
        {"dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30},
        6_154_908_736,
    ),
    "vae": FLUX["vae"],  # FLUX.1's own
    "text_encoder": Network(Qwen3Model, _QWEN3_4B, 4_022_468_096),
}
ZIMAGE_SCHEDULER = FlowMatchEulerDiscreteScheduler(shift=6.0)

OWLV2 = Network(
    Owlv2ForObjectDetection,
    Owlv2Config(
        text_config={
            "vocab_size": 49408,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "max_position_embeddings": 16,
        },
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 960,
            "patch_size": 16,
        },
        projection_dim=512,
    ),
    154_966_792,
)
DINOV2 = Network(
    Dinov2Model,
    Dinov2Config(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        mlp_ratio=4,
        image_size=518,
        patch_size=14,
    ),
    86_580_480,
)
