"""The committed miniature: its weights load like any others and know the world."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from helpers import ROOT
from PIL import Image
from training import sdxl_on

from detect_and_compare import load_embedder
from detect_and_compare.detect import without_overlaps
from detect_and_compare.score import similarity_matrix
from mini.subjects import SUBJECTS, subject_photos, subjects_of, write_pair
from mini.training.detector import HELD_OUT, OVERLAP, SURE, accuracy, draw_counted, find
from mini.training.stream import HELD_OUT_SEED, held_out_scenes
from mudi.images import load_rgb
from mudi.masks.segment import Detector
from mudi.metadata import load_subjects
from mudi.pictures.loras import load_loras
from mudi.pictures.sampling import Sampler, Sampling, Shot

torch.set_num_threads(1)
WEIGHTS = ROOT / "mini/weights"
PHOTOS = 8  # of each subject


@pytest.fixture(scope="module")
def pipeline():
    return StableDiffusionXLPipeline.from_pretrained(WEIGHTS / "sdxl")


def test_the_weights_are_small():
    sizes = [path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()]
    assert max(sizes) <= 16e6 and sum(sizes) <= 48e6


@pytest.mark.parametrize("name", ["embedder_a", "embedder_b"])
def test_the_embedders_tell_subjects_apart_that_they_never_saw(name):
    """Measured when committed: 96 % and 95 %; 13 subjects, chance is 8 %."""
    rng = np.random.default_rng(3)
    photos = [subject_photos(subject, PHOTOS, rng) for subject in SUBJECTS.values()]
    images = [Image.fromarray(photo.pixels) for own in photos for photo in own]
    vectors = load_embedder(str(WEIGHTS / name))(images)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    subject = np.repeat(np.arange(len(photos)), PHOTOS)
    assert (subject[similarity.argmax(axis=1)] == subject).mean() > 0.9


@pytest.mark.parametrize("count", [1, 2])
def test_the_detector_counts(count):
    """Measured when committed: see mini/weights/README.md."""
    rng = np.random.default_rng([HELD_OUT_SEED, count])
    examples = [draw_counted(count, HELD_OUT, rng) for _ in range(40)]
    found = find(Detector(str(WEIGHTS / "detector"), torch.device("cpu")), examples, SURE)
    kept = [without_overlaps(boxes, OVERLAP) for boxes in found]
    measured = accuracy(examples, kept)
    assert measured["right"] > 0.8 and measured["iou"] > 0.6


def test_the_vae_keeps_what_scenes_show(pipeline):
    """Measured when committed: 0.0053 on held-out scenes, pixels from -1 to 1."""
    pixels = held_out_scenes(64).pixels
    with torch.no_grad():
        decoded = pipeline.vae.decode(pipeline.vae.encode(pixels).latent_dist.mean).sample
    assert (decoded - pixels).square().mean() < 0.01


def test_the_base_puts_things_where_noise_was_and_the_background_behind(pipeline):
    """Backgrounds follow the prompt: a border as bright or as dark as it asks for."""
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a photo of a fox, white background.", "a photo of a fox, black background."]
    images = pipeline(
        [prompt for prompt in prompts for _ in range(4)],
        num_inference_steps=20,
        generator=[torch.Generator().manual_seed(seed) for seed in (*range(4), *range(4))],
        output_type="np",
    ).images
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    white, black = border.mean(axis=(1, 2)).reshape(2, 4).mean(axis=1)
    assert white > 0.8 and black < 0.2
    centre = images[:, 16:48, 16:48].std(axis=(1, 2, 3))
    assert (centre > 0.05).mean() > 0.7


def likeness(pipeline, subjects, references, embed):
    """Mean cosine of pictures of each subject to each one's references: (N, N)."""
    sampler = Sampler(pipeline, Sampling((64, 64), steps=20, guidance_scale=3.0))
    rows = []
    for name in subjects.names.values():
        shots = [Shot(f"a photo of a {name}, simple background.", seed) for seed in range(8)]
        vectors = embed([picture.image for picture in sampler.draw(shots, batch_size=8)])
        rows.append(similarity_matrix(vectors, references).mean(axis=0))
    return np.stack(rows)


def test_a_short_segmix_lora_teaches_the_base_both_subjects(pipeline, tmp_path):
    """Measured when committed: from -0.07 and 0.05 to 0.69 and 0.70; to the other at most 0.01."""
    data = write_pair(tmp_path / "pair", subjects_of("fox_and_car"), np.random.default_rng(0))
    subjects, embed = load_subjects(data), load_embedder(str(WEIGHTS / "embedder_a"))
    references = [
        embed([load_rgb(photo.image) for photo in subjects.photos_of(subject)])
        for subject in subjects.names
    ]
    before = likeness(pipeline, subjects, references, embed)
    lora = sdxl_on(WEIGHTS / "sdxl").train(
        tmp_path / "lora",
        "--max_train_steps 250 --learning_rate 2e-3 --dco_beta 0 --segmix_prob 0.3",
        "--train_batch_size 4 --rank 16",
        data=data,
    )
    load_loras(pipeline, [str(lora)], [1.0])
    after = likeness(pipeline, subjects, references, embed)
    own = np.diag(after)
    assert (own - np.diag(before) > 0.2).all()
    assert (own > after[[0, 1], [1, 0]] + 0.2).all()
