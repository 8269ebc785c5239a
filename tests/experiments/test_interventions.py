"""Seg-Mix and shifted noise with one idea taken out: what changes, and that nothing else does."""

import numpy as np
import pytest

from experiments.interventions import COLLAGES, STARTS, collages_of
from mini.subjects import subjects_of, write_pair
from mudi.data import Draw, SampleOptions, SegMixDataset
from mudi.metadata import load_subjects
from mudi.pictures.sampling import Shot, Stage
from mudi.segmix import SDXL_STYLE
from mudi.training import runtime

OPTIONS = SampleOptions(64, SDXL_STYLE, segmix_prob=1.0)
BOTH = "a photo of a zul fox and a sna car, simple background."


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair") / "fox_and_car"
    write_pair(folder, subjects_of("fox_and_car"), np.random.default_rng(0), photos=2)
    return load_subjects(folder, min_subjects=2)


def draws(kind, subjects, count=40):
    dataset = kind(subjects, OPTIONS)
    [samples] = zip(*(dataset[Draw(i % 4, 0, f"draw {i}")] for i in range(count)), strict=True)
    assert {sample.prompt for sample in samples} <= set(dataset.prompts())
    return samples


def named(sample):
    return [token for token in ("zul", "sna") for _ in range(sample.prompt.count(token))]


def test_names_at_random_change_no_pixel_and_say_nothing(subjects):
    own, random_names = draws(SegMixDataset, subjects), draws(COLLAGES["names_at_random"], subjects)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(own, random_names, strict=True))
    assert all(named(sample) == ["zul", "sna"] for sample in own)
    told = [named(sample) for sample in random_names]
    assert all(told.count(twice) >= 4 for twice in (["zul"] * 2, ["sna"] * 2))


def test_one_twice_shows_and_names_one_subject(subjects):
    for sample in draws(COLLAGES["one_twice"], subjects):
        assert len(set(named(sample))) == 1 and len(named(sample)) == 2
        assert len({name for name, _ in sample.boxes}) == 1


def test_alone_shows_one_cutout_on_white_as_large_as_in_a_collage(subjects):
    for sample in draws(COLLAGES["alone"], subjects):
        assert len(named(sample)) == 1 and sample.mixed
        assert (sample.pixels[~sample.mask] == 255).all()
        rows, columns = np.nonzero(sample.mask)
        assert np.ptp(columns) < 32 and rows.size > 50


def test_a_training_takes_the_changed_collages_and_gives_them_back():
    for name, kind in COLLAGES.items():
        with collages_of(name):
            assert runtime.SegMixDataset is kind
        assert runtime.SegMixDataset is SegMixDataset
    with collages_of(None):
        assert runtime.SegMixDataset is SegMixDataset


def test_starts_keep_the_layout_and_change_what_stands_in_it(subjects):
    shot = Shot(BOTH, seed=3, gamma=0.5)
    own = Stage(subjects, (64, 64)).start(shot)
    blobs, exchanged = (STARTS[name](subjects, (64, 64)).start(shot) for name in STARTS)
    assert own.layout == blobs.layout == exchanged.layout
    assert np.array_equal(own.scene.mask, blobs.scene.mask)
    assert (np.asarray(blobs.scene.image)[blobs.scene.mask] == 128).all()
    # each box holds the other's shape: of the fox's box the car fills the width, not the height
    shapes = [[b.width / b.height for b in one.scene.boxes] for one in (own, exchanged)]
    assert shapes[0][0] < 1.3 < shapes[1][0] and shapes[1][1] < 1.3 < shapes[0][1]
