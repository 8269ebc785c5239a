"""Reward guidance (Direct Consistency Optimization, arXiv 2402.12004): how far a LoRA may pull.

    eps = eps_base(null) + s (eps_base(c_base) - eps_base(null))
                         + r (eps_LoRA(c) - eps_base(c_base))

c_base is the prompt with class nouns in the place of the subjects' names. r = 0 is the plain base
and r = s ordinary guidance with the base's null pass; a larger r gives more likeness and less of
the prompt. A network that is distilled for guidance has no null pass: v = v_base + r (v_LoRA -
v_base), where r = 1 is the LoRA alone.

    with reward_guidance(pipeline, rewards, base_prompts, guidance_scale):
        pipeline(prompts, guidance_scale=guidance_scale)
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from mudi.backbones.table import BUILT_IN, CALLS, LISTS, ROWS, backbone_of
from mudi.ground.errors import SetupError
from mudi.learned_words import attached
from mudi.lora import adapters_off


def reward_map(rewards: Sequence[float], masks: Tensor, elsewhere: float) -> Tensor:
    """Give each subject its own reward: (N,) and `latent_masks` (N, h, w) -> (1, 1, h, w).

    Where two subjects or a subject and the rest share a latent, theirs are averaged by the areas
    that they cover.

    Args:
        elsewhere: the reward where no subject is, as it is without this guidance: the guidance
            scale, or 1 for a network that is distilled for guidance.

    Raises:
        ValueError: another number of rewards than of masks.
    """
    if len(rewards) != len(masks):
        raise ValueError(f"{len(rewards)} rewards, but {len(masks)} subjects")
    more = masks.new_tensor(rewards) - elsewhere
    return (elsewhere + torch.einsum("n,nhw->hw", more, masks))[None, None]


@contextmanager
def reward_guidance(
    pipeline: DiffusionPipeline,
    rewards: Tensor,
    base_prompts: list[str],
    guidance_scale: float,
    negative_prompt: str | None = None,
) -> Iterator[None]:
    """Make a pipeline's guidance the reward's inside, for a call with as many prompts.

    Three rows go through the network a picture and step (FLUX: two), all but one with every adapter
    off, also those of the text encoders, and learned words. The pipeline's own formula does the
    rest: for its batch [null, c] it gets (u, c_b + r/s (l - c_b)).

    Args:
        rewards: r (B, C, h, w) as the pipeline's latents are, for FLUX packed.
        base_prompts: what the base is asked, a text for each of the call's; read as they stand.
        guidance_scale: s, as the pipeline is called with.
        negative_prompt: stands in the empty prompt's place, for the base as well (SDXL).

    Raises:
        SetupError: the pipeline would not guide, so that there is no null pass.
        ValueError: no part has an adapter.
    """
    backbone = backbone_of(type(pipeline).__name__)
    network = getattr(pipeline, backbone.denoiser)
    models = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    models += attached(pipeline)
    kind = _KINDS[backbone.guidance]
    with torch.no_grad(), adapters_off(*models), ExitStack() as held:
        for words in attached(pipeline):
            held.enter_context(words.as_they_are())
        base = kind(pipeline, base_prompts, guidance_scale, negative_prompt)
    rewards = rewards.to(base.tokens.device)

    def before(network: Any, args: tuple, kwargs: dict[str, Any]) -> tuple:
        return base.adapted_inputs(args, kwargs)

    def after(network: Any, args: tuple, kwargs: dict[str, Any], output: tuple) -> tuple:
        args, kwargs = base.base_inputs(args, kwargs)
        with adapters_off(*models):
            answers = network.forward(*args, **kwargs)[0]
        return (base.mixed(answers, output[0], rewards),)

    hooks = [
        network.register_forward_pre_hook(before, with_kwargs=True),
        network.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Guided:
    """SDXL's calls: of rows [null, c] the adapted network gets c; the base gets [null, c_base]."""

    def __init__(self, pipeline: Any, prompts: list[str], scale: float, negative: str | None):
        if scale <= 1 or pipeline.unet.config.time_cond_proj_dim is not None:
            raise SetupError(
                "reward guidance needs a null pass: a guidance scale above 1, and a model "
                "that guidance is not built into"
            )
        tokens, no_tokens, pooled, no_pooled = pipeline.encode_prompt(
            prompts, negative_prompt=[negative] * len(prompts) if negative else None
        )
        self.tokens, self.pooled = torch.cat([no_tokens, tokens]), torch.cat([no_pooled, pooled])
        self._scale = scale

    def adapted_inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        sample, timestep = args
        told = {name: _prompted(value) for name, value in kwargs["added_cond_kwargs"].items()}
        tokens = _prompted(kwargs["encoder_hidden_states"])
        more = {"encoder_hidden_states": tokens, "added_cond_kwargs": told}
        return (_prompted(sample), timestep), kwargs | more

    def base_inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        sample, timestep = args
        sizes = kwargs["added_cond_kwargs"]["time_ids"]
        told = {"text_embeds": self.pooled, "time_ids": torch.cat([sizes, sizes])}
        more = {"encoder_hidden_states": self.tokens, "added_cond_kwargs": told}
        return (torch.cat([sample, sample]), timestep), kwargs | more

    def mixed(self, base: Tensor, adapted: Tensor, rewards: Tensor) -> Tensor:
        null, prompted = base.chunk(2)
        return torch.cat([null, _towards(prompted, adapted, rewards / self._scale)])


class _Distilled:
    """FLUX's calls: one row a picture, as it is to the adapted network, with c_base to the base."""

    def __init__(self, pipeline: Any, prompts: list[str], scale: float, negative: str | None):
        self.tokens, self.pooled, _ = pipeline.encode_prompt(prompts, prompt_2=None)

    def adapted_inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        return args, kwargs

    def base_inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        more = {"encoder_hidden_states": self.tokens, "pooled_projections": self.pooled}
        return args, kwargs | more

    def mixed(self, base: Tensor, adapted: Tensor, rewards: Tensor) -> Tensor:
        return _towards(base, adapted, rewards)


class _Calls:
    """FLUX.2-klein's calls: a step's first is of the prompt, its second of null; see `mixed`."""

    def __init__(self, pipeline: Any, prompts: list[str], scale: float, negative: str | None):
        if scale <= 1 or pipeline.config.is_distilled:
            raise SetupError(
                "reward guidance needs a null pass: a guidance scale above 1, and a model "
                "that is not distilled"
            )
        self.tokens, _ = pipeline.encode_prompt(prompts)
        self._scale, self._calls = scale, 0

    def adapted_inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        self._calls += 1
        return args, kwargs

    @property
    def _of_null(self) -> bool:
        return self._calls % 2 == 0

    def base_inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        return args, kwargs if self._of_null else kwargs | {"encoder_hidden_states": self.tokens}

    def mixed(self, base: Tensor, adapted: Tensor, rewards: Tensor) -> Tensor:
        """Return null's answer of the base, or the prompt's between base and adapted network."""
        if self._of_null:
            return base
        rows = rewards.flatten(2).transpose(1, 2)  # as answers lie: (B, h * w, C)
        return _towards(base, adapted, rows / self._scale)


class _Listed:
    """Z-Image's calls: of lists [c, null] the adapted network gets c; the base gets [c_base, null].

    The pipeline's pos + s (pos - neg) is guidance by s + 1.
    """

    def __init__(self, pipeline: Any, prompts: list[str], scale: float, negative: str | None):
        if scale <= 0:
            raise SetupError("reward guidance needs a null pass: a guidance scale above 0")
        tokens, no_tokens = pipeline.encode_prompt(
            list(prompts), negative_prompt=[negative] * len(prompts) if negative else None
        )
        self.tokens, self._both = tokens[0], tokens + no_tokens
        self._scale = scale + 1

    def adapted_inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        return tuple(rows[: len(rows) // 2] for rows in args), kwargs

    def base_inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        pictures, timesteps, _ = args
        return (pictures * 2, timesteps.repeat(2), self._both), kwargs

    def mixed(self, base: list[Tensor], adapted: list[Tensor], rewards: Tensor) -> list[Tensor]:
        weights = rewards.unsqueeze(2) / self._scale  # (B, C, 1, h, w)
        guided = map(_towards, base[: len(adapted)], adapted, weights)
        return [*guided, *base[len(adapted) :]]


_KINDS: dict[str, Any] = {ROWS: _Guided, LISTS: _Listed, CALLS: _Calls, BUILT_IN: _Distilled}


def _prompted(rows: Tensor) -> Tensor:
    """Return the second half of a guidance batch [null, c]."""
    return rows.chunk(2)[1]


def _towards(base: Tensor, adapted: Tensor, weights: Tensor) -> Tensor:
    """Return base + weights (adapted - base), reckoned in float32."""
    return (base + weights * (adapted.float() - base.float())).to(base.dtype)
