from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import COLOURS, noise
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BitImageProcessor,
    CLIPProcessor,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from detect_and_compare.embed import AutoEmbedder, EmbedError, cached_embeddings, load_embedder
from detect_and_compare.text import ClipText
from mini.tiny import save_random_dreamsim, save_tiny_clip, save_tiny_dinov2

torch.set_num_threads(1)

IMAGES = [noise(), noise(30, 70, seed=1), *(Image.new("RGB", (9, 5), c) for c in COLOURS[:3])]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1} | {
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
OPENAI = np.array([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with a tiny DINOv2, a tiny CLIP and a random DreamSim."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_dinov2(folder / "dinov2")
    save_tiny_clip(folder / "clip")
    (folder / "dreamsim").mkdir()
    save_random_dreamsim(folder / "dreamsim")
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers: the hub's library is offline, and other downloads find a closed port."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


def pixels(image: Image.Image, crop: int, statistics: np.ndarray) -> torch.Tensor:
    """The middle of a square picture, normalised by mean and deviation: (1, 3, crop, crop)."""
    edge = (image.width - crop) // 2
    values = np.asarray(image.crop((edge, edge, edge + crop, edge + crop))) / 255
    normal = (values - statistics[0]) / statistics[1]
    return torch.from_numpy(normal).permute(2, 0, 1)[None].float()


# AutoModels


@pytest.mark.parametrize("pooling", [None, "mean", "cls", "pooler"])
def test_dinov2_pools_the_last_hidden_states_tokens(models, pooling):
    """5 tokens: the class token and 2 x 2 patches; the mean is over all of them."""
    folder = str(models / "dinov2")
    picture = noise(32, 32)  # the processor's size: nothing is resized
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        tokens = model(pixels(picture, 28, IMAGENET)).last_hidden_state[0]
    assert tokens.shape == (5, 32)
    expected = tokens[0] if pooling in ("cls", "pooler") else tokens.mean(0)
    embedder = load_embedder(folder, pooling=pooling)
    vectors = embedder([picture])
    assert vectors.shape == (1, 32) and vectors.dtype == np.float32
    assert vectors[0] == pytest.approx(expected.numpy(), abs=1e-5)
    assert embedder.name.startswith(f"{folder}@")
    assert embedder.name.endswith(f" {pooling or 'mean'}")


def test_clip_embeds_by_its_image_features(models):
    folder = str(models / "clip")
    picture = noise(32, 32)
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        vision = model.vision_model(pixels(picture, 32, OPENAI))
        features = model.visual_projection(vision.pooler_output)[0]
    embedder = load_embedder(folder)
    assert embedder([picture])[0] == pytest.approx(features.numpy(), abs=1e-5)
    assert embedder.name.endswith(" features")
    mean = load_embedder(folder, pooling="mean")([picture])[0]
    assert mean == pytest.approx(vision.last_hidden_state[0].mean(0).numpy(), abs=1e-5)


@pytest.mark.parametrize("name", ["dinov2", "clip", "dreamsim"])
def test_batches_and_no_pictures(models, name):
    """Five pictures at once, two at a time and one by one give the same, up to rounding."""
    which = "dreamsim:clip_vitb32" if name == "dreamsim" else str(models / name)
    whole, halves = (
        load_embedder(which, batch_size=size, cache_dir=models / "dreamsim") for size in (32, 2)
    )
    vectors = whole(IMAGES)
    assert len(vectors) == 5 and len(np.unique(vectors.round(3), axis=0)) == 5
    assert halves(IMAGES) == pytest.approx(vectors, abs=1e-5)
    assert np.concatenate([whole([image]) for image in IMAGES]) == pytest.approx(vectors, abs=1e-5)
    assert len(whole([])) == 0


def test_half_precision_is_used_and_named(models):
    embedder = load_embedder(str(models / "dinov2"), dtype=torch.bfloat16)
    vectors = embedder(IMAGES)
    assert embedder.name.endswith(" mean bfloat16") and vectors.dtype == np.float32
    assert np.array_equal(vectors, torch.from_numpy(vectors).bfloat16().float().numpy())


def test_a_folders_name_tells_its_weights(models, tmp_path):
    folder = tmp_path / "model"
    names = [load_embedder(str(save_tiny_dinov2(folder, seed=seed))).name for seed in (0, 1, 0)]
    assert names[0] == names[2] != names[1]


# DreamSim


def test_dreamsim_is_its_network_with_the_lora_weights_merged(models):
    """An independent sum: W + (alpha / r = 1) · B A in each qkv, projected, centred, length 1."""
    from dreamsim.feature_extraction.load_clip_as_dino import load_clip_as_dino

    folder, picture = models / "dreamsim", noise(224, 224)
    vit, projection = load_clip_as_dino(32, str(folder))
    lora = load_file(folder / "clip_vitb32_single_lora" / "adapter_model.safetensors")
    for i, block in enumerate(vit.blocks):
        key = f"base_model.model.extractor_list.0.model.blocks.{i}.attn.qkv"
        block.attn.qkv.weight.data += lora[f"{key}.lora_B.weight"] @ lora[f"{key}.lora_A.weight"]
    with torch.no_grad():
        vector = (vit.eval()(pixels(picture, 224, OPENAI)) @ projection)[0].numpy()
    vector -= vector.mean()
    embedder = load_embedder("dreamsim:clip_vitb32", cache_dir=folder)
    assert embedder.name == "dreamsim clip_vitb32"
    assert embedder([picture])[0] @ vector / np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


def test_torch_hubs_folder_is_as_before_even_if_dino_cannot_be_fetched(tmp_path):
    """dreamsim points torch.hub at its own folder to fetch the backbone."""
    (tmp_path / "dino_vitb16_pretrain.pth").touch()
    (tmp_path / "dino_vitb16_single_lora").mkdir()
    before = torch.hub.get_dir()
    with pytest.raises(EmbedError, match=r"refused.*there as facebookresearch_dino_main"):
        load_embedder("dreamsim:dino_vitb16", cache_dir=tmp_path)
    assert torch.hub.get_dir() == before


def test_a_missing_dreamsim_checkpoint_says_what_goes_where(tmp_path):
    folder = tmp_path / "new" / "folder"
    with pytest.raises(EmbedError) as told:
        load_embedder("dreamsim", cache_dir=folder)
    message = str(told.value)
    assert message.startswith(f"dreamsim ensemble: cannot be loaded from {folder} (")
    assert "dreamsim_ensemble_checkpoint.zip there" in message
    assert "facebookresearch_dino_main" in message and "\n" not in message


def test_a_dreamsim_lora_with_weights_missing_is_refused(models, tmp_path):
    kind = save_random_dreamsim(tmp_path)
    path = tmp_path / f"{kind}_single_lora" / "adapter_model.safetensors"
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path)
    with pytest.raises(EmbedError, match=r"Found missing adapter keys.*_checkpoint\.zip"):
        load_embedder(f"dreamsim:{kind}", cache_dir=tmp_path)


def test_a_broken_dreamsim_checkpoint_is_refused(tmp_path):
    kind = save_random_dreamsim(tmp_path)
    (tmp_path / f"{kind}_pretrain.pth.tar").write_bytes(b"half")
    with pytest.raises(EmbedError, match="dreamsim clip_vitb32: cannot be loaded"):
        load_embedder(f"dreamsim:{kind}", cache_dir=tmp_path)


# What cannot be loaded


@pytest.mark.parametrize(
    "name, pooling, message",
    [
        ("dinov2", None, r"facebook/dinov2-base: cannot be loaded .*hf download"),
        ("clip", None, r"openai/clip-vit-large-patch14: cannot be loaded"),
        ("/nowhere/model", None, r"/nowhere/model: cannot be loaded"),
        ("dinov2", "max", "pooling max: known are mean, cls, pooler, features"),
        ("dreamsim", "mean", "dreamsim: pooling mean: DreamSim pools by itself"),
        ("dreamsim:vit", None, "dreamsim:vit: no such type; there are ensemble, dino_vitb16"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line(name, pooling, message):
    with pytest.raises(EmbedError, match=message) as told:
        load_embedder(name, pooling=pooling)
    assert "\n" not in str(told.value)


def test_a_pooling_that_the_model_lacks_is_refused(models):
    with pytest.raises(EmbedError, match="features: the model has no text tower"):
        load_embedder(str(models / "dinov2"), pooling="features")


@pytest.mark.parametrize(
    "model, pooling, message",
    [
        (
            ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
            "mean",
            "the model has no tokens; use pooling pooler",
        ),
        (ViTMAEModel(ViTMAEConfig(**SIZES)), "pooler", "no pooled output; use mean or cls"),
        (ViTModel(ViTConfig(**SIZES), add_pooling_layer=False), "pooler", "lacks 2 weights"),
    ],
)
def test_other_models_have_other_poolings(tmp_path, model, pooling, message):
    model.save_pretrained(tmp_path)
    BitImageProcessor(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(tmp_path)
    with pytest.raises(EmbedError, match=message):
        load_embedder(str(tmp_path), pooling=pooling)([noise(32, 32)])
    other = {"mean": "pooler", "pooler": "cls"}[pooling]
    assert load_embedder(str(tmp_path), pooling=other)([noise(32, 32)]).shape == (1, 16)


def test_broken_and_incomplete_weights_are_refused(tmp_path):
    """transformers would make the missing ones up."""
    path = save_tiny_dinov2(tmp_path) / "model.safetensors"
    weights = load_file(path)
    del weights["layernorm.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(EmbedError, match=r"lacks 1 weights, such as layernorm\.weight"):
        load_embedder(str(tmp_path))
    path.write_bytes(b"half")
    with pytest.raises(EmbedError, match="cannot be loaded"):
        load_embedder(str(tmp_path))


# The cache


class Counting:
    """A real embedder that counts the pictures it is given."""

    def __init__(self, embedder: AutoEmbedder):
        self.name = embedder.name
        self.seen = 0
        self._embedder = embedder

    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        self.seen += len(images)
        return self._embedder(images)


def test_cached_equals_fresh(models, tmp_path):
    embedder = Counting(AutoEmbedder(str(models / "dinov2"), batch_size=1))
    fresh = embedder(IMAGES)
    embedder.seen = 0
    for images, seen in ((IMAGES[:2], 2), (IMAGES, 5), (IMAGES[::-1], 5), (IMAGES[:1] * 2, 5)):
        expected = fresh[[IMAGES.index(image) for image in images]]
        assert np.array_equal(cached_embeddings(embedder, images, tmp_path / "cache"), expected)
        assert embedder.seen == seen
    assert len(list((tmp_path / "cache").iterdir())) == 5
    assert len(cached_embeddings(embedder, [], tmp_path / "cache")) == 0


def test_the_cache_tells_embedders_and_shapes_apart(models, tmp_path):
    """The second picture has the first one's bytes in another shape."""
    wide = noise(20, 10)
    tall = Image.frombytes("RGB", (10, 20), wide.tobytes())
    for pooling in ("mean", "cls"):
        embedder = load_embedder(str(models / "dinov2"), pooling=pooling, batch_size=1)
        for image in (wide, tall):
            assert np.array_equal(cached_embeddings(embedder, [image], tmp_path), embedder([image]))
    assert len(list(tmp_path.iterdir())) == 4


def test_without_a_folder_nothing_is_kept(models):
    embedder = Counting(AutoEmbedder(str(models / "dinov2")))
    for _ in range(2):
        cached_embeddings(embedder, IMAGES, None)
    assert embedder.seen == 10


# CLIP-T


def test_clip_t_is_the_cosine_of_each_picture_with_its_text(models):
    folder = str(models / "clip")
    texts = ["a red robot", "a dog and a cat", "a cat", "a bear " * 100, ""]
    model, processor = (
        AutoModel.from_pretrained(folder).eval(),
        CLIPProcessor.from_pretrained(folder),
    )
    expected = []
    for image, text in zip(IMAGES, texts, strict=True):
        inputs = processor(images=image, text=text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        expected.append(float((output.image_embeds * output.text_embeds).sum()))
    clip_t = ClipText(folder, batch_size=2)
    assert clip_t(IMAGES, texts) == pytest.approx(np.array(expected), abs=1e-5)
    assert len(np.unique(np.round(expected, 4))) == 5
    assert clip_t([], []).shape == (0,)
    assert clip_t.name.startswith(f"{folder}@") and clip_t.name.endswith(" CLIP-T")


def test_clip_t_refuses_what_does_not_fit(models):
    with pytest.raises(ValueError, match="shorter"):
        ClipText(str(models / "clip"))(IMAGES, ["one text"])
    with pytest.raises(EmbedError, match="a Dinov2Model; CLIP-T wants CLIPModel"):
        ClipText(str(models / "dinov2"))
    with pytest.raises(EmbedError, match="openai/clip-vit-large-patch14: cannot be loaded"):
        ClipText()
