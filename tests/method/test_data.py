import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CLASSES, COLOURS, HEIGHT, NAMES, WIDTH, DataFolder, noise
from PIL import Image

from mudi.data import (
    Batch,
    Conditioning,
    Draw,
    DrawSchedule,
    Pool,
    Sample,
    SampleOptions,
    SegMixDataset,
    make_loader,
    to_float,
)
from mudi.metadata import Subjects, load_subjects
from mudi.segmix import FLUX_STYLE, SDXL_STYLE
from mudi.training.checks import limit_prior

SIZE = 32
ALWAYS = SampleOptions(SIZE, SDXL_STYLE, segmix_prob=1.0)
NEVER = SampleOptions(SIZE, SDXL_STYLE, segmix_prob=0.0)


def first(names: dict[str, str], count: int) -> dict[str, str]:
    return dict(list(names.items())[:count])


@pytest.fixture
def subjects(folder: DataFolder) -> Subjects:
    return load_subjects(folder.path)


def make_prior(path: Path, count: int = 2, photos_each: int = 4) -> Subjects:
    """Class pictures of the first `count` subjects, captioned "A photo of a robot, number 0."."""
    name = "class_metadata.jsonl"
    return load_subjects(DataFolder(path, first(CLASSES, count), photos_each, name).path, name)


def schedule(**values: int) -> DrawSchedule:
    usual = {"num_photos": 6, "seed": 0, "batch_size": 1, "first_step": 0, "last_step": 10}
    return DrawSchedule(**{**usual, **values})


def draws(count: int, photo: int = 0) -> list[Draw]:
    return [Draw(photo, 0, f"draw {i}") for i in range(count)]


def assert_equal_batches(one: Batch, two: Batch) -> None:
    torch.testing.assert_close(one.pixels, two.pixels, rtol=0, atol=0)
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(one.conditioning, two.conditioning)
    assert (one.prompts, one.mixed) == (two.prompts, two.mixed)


# The schedule


def test_the_draws_of_two_processes_interleave_to_those_of_one():
    alone = list(schedule(batch_size=4, accumulation=2))
    pair = [schedule(batch_size=2, accumulation=2, process=p, num_processes=2) for p in (0, 1)]
    assert [first + second for first, second in zip(*pair, strict=True)] == alone


def test_a_run_from_step_7_draws_the_tail_of_the_full_run():
    full = list(schedule(batch_size=2, accumulation=3))
    resumed = schedule(batch_size=2, accumulation=3, first_step=7)
    assert list(resumed) == full[7 * 3 :]
    assert len(resumed) == 3 * 3


def test_every_epoch_shows_each_photo_as_often_as_repeats_says():
    photos = [draw.photo for [draw] in schedule(repeats=3, last_step=4 * 18)]
    epochs = [photos[start : start + 18] for start in range(0, 4 * 18, 18)]
    for epoch in epochs:
        assert Counter(epoch) == dict.fromkeys(range(6), 3)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # each in an order of its own


def test_draws_know_their_optimizer_step_and_have_seeds_of_their_own():
    batches = list(schedule(batch_size=2, accumulation=2, first_step=3, last_step=5))
    assert [draw.step for batch in batches for draw in batch] == [3] * 4 + [4] * 4
    assert len({draw.seed for batch in batches for draw in batch}) == 8


def test_another_seed_draws_otherwise():
    one, two = list(schedule(seed=1)), list(schedule(seed=2))
    assert [draw.photo for [draw] in one] != [draw.photo for [draw] in two]
    assert not {draw.seed for [draw] in one} & {draw.seed for [draw] in two}


# The start step, workers and resuming


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_collage_comes_before_the_start_step_and_all_after(subjects, num_workers):
    dataset = SegMixDataset(subjects, replace(ALWAYS, segmix_start_step=3))
    loader = make_loader(dataset, schedule(accumulation=2, last_step=6), num_workers)
    assert [batch.mixed for batch in loader] == [[False]] * 6 + [[True]] * 6


def test_worker_processes_and_a_resumed_run_see_the_same_samples(subjects):
    options = replace(ALWAYS, segmix_prob=0.5, segmix_start_step=3, random_flip=True)
    whole = schedule(batch_size=2)
    alone = list(make_loader(SegMixDataset(subjects, options), whole, num_workers=0))
    workers = make_loader(SegMixDataset(subjects, options), whole, num_workers=2)
    for one, two in zip(alone, workers, strict=True):
        assert_equal_batches(one, two)
    resumed = replace(whole, first_step=5)
    for one, two in zip(
        alone[5:], make_loader(SegMixDataset(subjects, options), resumed, 0), strict=True
    ):
        assert_equal_batches(one, two)
    mixed = [flag for batch in alone[3:] for flag in batch.mixed]
    assert not any(flag for batch in alone[:3] for flag in batch.mixed)
    assert 0 < sum(mixed) < len(mixed)


def test_a_photo_is_mixed_with_the_probability_asked_for(subjects):
    dataset = SegMixDataset(subjects, replace(ALWAYS, segmix_prob=0.3))
    mixed = sum(dataset[draw][0].mixed for draw in draws(1000))
    assert abs(mixed - 300) < 4 * (1000 * 0.3 * 0.7) ** 0.5


# Single photos


def resized(path: Path) -> Image.Image:
    """A 64x48 photo with its shorter side at 32 pixels, bilinear as the original's."""
    return Image.open(path).resize((43, 32), Image.Resampling.BILINEAR)


def test_a_photo_is_cropped_at_random_where_its_conditioning_says(subjects):
    dataset = SegMixDataset(subjects, NEVER)
    photo = resized(subjects.photos[0].image)
    lefts = set()
    for draw in draws(100):
        [sample] = dataset[draw]
        height, width, top, left = sample.conditioning
        assert (height, width, top) == (HEIGHT, WIDTH, 0)
        expected = photo.crop((left, 0, left + SIZE, SIZE))
        np.testing.assert_array_equal(sample.pixels, np.asarray(expected))
        assert sample.mask.all() and sample.mask.shape == (SIZE, SIZE)
        assert sample.prompt == "A photo of a olis robot, number 0."
        lefts.add(left)
    assert lefts == set(range(43 - 32 + 1))


def test_center_crop_takes_the_middle(subjects):
    dataset = SegMixDataset(subjects, replace(NEVER, center_crop=True))
    expected = np.asarray(resized(subjects.photos[0].image).crop((5, 0, 37, 32)))  # (43 - 32) // 2
    for draw in draws(5):
        [sample] = dataset[draw]
        assert sample.conditioning == (HEIGHT, WIDTH, 0, 5)
        np.testing.assert_array_equal(sample.pixels, expected)


def test_a_collage_is_conditioned_as_a_full_square(subjects):
    [sample] = SegMixDataset(subjects, ALWAYS)[Draw(0, 0, "x")]
    assert sample.conditioning == (SIZE, SIZE, 0, 0)


@pytest.fixture
def two_coloured(folder: DataFolder) -> Subjects:
    """Photos whose left half is one colour, the right another: a's are 0 and 1, b's 2 and 3."""
    for i, subject in enumerate("ab"):
        image = Image.new("RGB", (WIDTH, HEIGHT), COLOURS[2 * i])
        image.paste(COLOURS[2 * i + 1], (WIDTH // 2, 0, WIDTH, HEIGHT))
        image.save(folder.path / f"{subject}0.png")
    folder.lines[1:] = [
        {**line, "file_name": f"{line['id']}0.png"} for line in (folder.lines[1], folder.lines[4])
    ]
    folder.save()
    return load_subjects(folder.path)


def first_column(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Return where, from the left, that colour begins; resizing blends it with its neighbours."""
    near = (np.abs(pixels.astype(int) - colour) < 20).all(axis=2)
    return int(np.flatnonzero(near.any(axis=0))[0])


@pytest.mark.parametrize("random_flip", [False, True])
def test_random_flip_mirrors_every_other_photo(two_coloured, random_flip):
    dataset = SegMixDataset(two_coloured, replace(NEVER, random_flip=random_flip))
    mirrored = 0
    for draw in draws(200):
        pixels = dataset[draw][0].pixels
        mirrored += first_column(pixels, COLOURS[1]) < first_column(pixels, COLOURS[0])
    assert mirrored == 0 if not random_flip else abs(mirrored - 100) < 30


@pytest.mark.parametrize("random_flip", [False, True])
def test_random_flip_mirrors_every_cutout_by_its_own_coin(two_coloured, random_flip):
    """At 64 pixels and 0.4 of the largest scale the two can't overlap: 16 + 12 < 64 - 16 - 12."""
    options = replace(ALWAYS, resolution=64, random_flip=random_flip, scales={"a": 0.4, "b": 0.4})
    dataset = SegMixDataset(two_coloured, options)
    coins = Counter()
    for draw in draws(200):
        pixels = dataset[draw][0].pixels
        starts = [first_column(pixels, colour) for colour in COLOURS[:4]]
        coins[starts[1] < starts[0], starts[3] < starts[2]] += 1
    if random_flip:
        assert len(coins) == 4 and all(abs(count - 50) < 25 for count in coins.values())
    else:
        assert set(coins) == {(False, False)}


# Collages


def test_the_prompt_of_a_collage_begins_with_the_drawn_photos_subject(subjects):
    dataset = SegMixDataset(subjects, ALWAYS)
    a_first = "a photo of a olis robot and a hta teddy bear, simple background."
    b_first = "a photo of a hta teddy bear and a olis robot, simple background."
    assert {dataset[draw][0].prompt for draw in draws(20, photo=0)} == {a_first}
    assert {dataset[draw][0].prompt for draw in draws(20, photo=3)} == {b_first}


def test_the_added_subject_is_any_of_the_others(tmp_path):
    dataset = SegMixDataset(load_subjects(DataFolder(tmp_path, NAMES, 1).path), ALWAYS)
    prompts = Counter(dataset[draw][0].prompt for draw in draws(400))
    assert set(prompts) == {
        "a photo of a olis robot and a hta teddy bear, simple background.",
        "a photo of a olis robot and a pll corgi, simple background.",
    }
    assert all(abs(count - 200) < 40 for count in prompts.values())


@pytest.mark.parametrize("photo", [0, 1])
@pytest.mark.parametrize("scales", [{"a": 0.4, "b": 0.2}, {"a": 0.2, "b": 0.4}], ids=str)
def test_scales_belong_to_subjects_whichever_was_drawn(two_coloured, photo, scales):
    """The largest is 30 pixels wide, and each of a subject's colours takes a half of it."""
    dataset = SegMixDataset(two_coloured, replace(ALWAYS, resolution=64, scales=scales))
    pixels = dataset[Draw(photo, 0, "x")][0].pixels.astype(int)
    for subject, colour in (("a", COLOURS[0]), ("b", COLOURS[3])):
        columns = (np.abs(pixels - colour) < 20).all(axis=2).any(axis=0)
        assert abs(columns.sum() - 30 * scales[subject] / 2) <= 1


@pytest.mark.parametrize("style", [SDXL_STYLE, FLUX_STYLE], ids=["SDXL", "FLUX"])
@pytest.mark.parametrize("count, together", [(2, 2), (3, 2), (3, 3)])
@pytest.mark.parametrize("with_prior", [False, True])
def test_prompts_lists_what_draws_have_and_nothing_else(
    tmp_path, style, count, together, with_prior
):
    subjects = load_subjects(DataFolder(tmp_path / "pair", first(NAMES, count), 2).path)
    prior = make_prior(tmp_path / "prior", count, photos_each=2) if with_prior else None
    options = SampleOptions(SIZE, style, segmix_prob=0.7, num_subjects=together)
    dataset = SegMixDataset(subjects, options, prior)
    seen = {
        sample.prompt
        for position, draw in enumerate(draws(500))
        for sample in dataset[draw._replace(photo=position % len(subjects.photos))]
    }
    prompts = dataset.prompts()
    assert set(prompts) == seen
    assert len(prompts) == len(seen)


def test_prompts_without_segmix_are_the_captions(subjects):
    captions = [photo.caption for photo in subjects.photos]
    assert SegMixDataset(subjects, NEVER).prompts() == captions


# The prior


def test_the_halves_of_a_batch_are_subjects_then_class_pictures(tmp_path, subjects):
    prior = make_prior(tmp_path / "prior")
    dataset = SegMixDataset(subjects, replace(ALWAYS, segmix_start_step=2), prior)
    for step, batch in enumerate(make_loader(dataset, schedule(batch_size=3, last_step=6), 0)):
        assert batch.num_subjects == 3
        assert batch.mixed == [step >= 2] * 6
        for own, other in zip(batch.prompts[:3], batch.prompts[3:], strict=True):
            # The class picture is of the drawn photo's id, the second of the other
            drawn = "a" if own.lower().startswith("a photo of a olis robot") else "b"
            assert NAMES[drawn] in own and CLASSES[drawn] in other
            assert not any(token in other for token in ("olis", "hta"))
            assert other.startswith(f"a photo of a {CLASSES[drawn]} and a ") == (step >= 2)


def test_a_single_class_is_mixed_with_itself(tmp_path, subjects):
    dataset = SegMixDataset(subjects, ALWAYS, make_prior(tmp_path / "prior", count=1))
    _, sample = dataset[Draw(0, 0, "x")]
    assert sample.mixed
    assert sample.prompt == "a photo of a robot and a robot, simple background."
    assert sample.prompt in dataset.prompts()


def test_one_of_several_captions_is_drawn_a_time(folder):
    captions = ["A olis robot.", "One olis robot on a table.", "A photo of a olis robot."]
    folder.lines[1]["text"] = captions
    folder.save()
    dataset = SegMixDataset(load_subjects(folder.path), NEVER)
    counts = Counter(dataset[draw][0].prompt for draw in draws(300))
    assert set(counts) == set(captions) and all(abs(n - 100) < 35 for n in counts.values())
    assert dataset.prompts()[:4] == [*captions, "A photo of a olis robot, number 1."]
    assert {dataset[draw][0].prompt for draw in draws(20, photo=1)} == {dataset.prompts()[3]}


def test_a_prior_collage_has_the_drawn_class_at_the_left_and_first(tmp_path, subjects):
    prior = make_prior(tmp_path / "prior")
    for photo, colour in zip(prior.photos, COLOURS[:1] * 4 + COLOURS[1:2] * 4, strict=True):
        Image.new("RGB", (WIDTH, HEIGHT), colour).save(photo.image)
    dataset = SegMixDataset(subjects, replace(ALWAYS, resolution=64), prior)
    for place, (drawn, other) in ((0, (0, 1)), (3, (1, 0))):
        for draw in draws(30, photo=place):
            _, sample = dataset[draw]
            first, second = (list(CLASSES.values())[i] for i in (drawn, other))
            assert sample.prompt == f"a photo of a {first} and a {second}, simple background."
            left = first_column(sample.pixels, COLOURS[drawn])
            assert left < first_column(sample.pixels, COLOURS[other])


def top_edges(mask: np.ndarray) -> set[int]:
    """Return the first painted row of every painted column."""
    return set(mask.argmax(axis=0)[mask.any(axis=0)].tolist())


def test_the_prior_s_collages_share_the_top_edge_and_the_subjects_do_not(tmp_path, subjects):
    dataset = SegMixDataset(subjects, ALWAYS, make_prior(tmp_path / "prior"))
    pairs = [dataset[draw] for draw in draws(50)]
    assert all(len(top_edges(prior.mask)) == 1 for _, prior in pairs)
    assert sum(len(top_edges(own.mask)) == 2 for own, _ in pairs) > 25


def test_fixed_scales_are_not_the_prior_s(tmp_path, subjects):
    options = replace(ALWAYS, resolution=64, scales={"a": 0.1, "b": 0.1})
    dataset = SegMixDataset(subjects, options, make_prior(tmp_path / "prior"))
    for draw in draws(20):
        own, prior = dataset[draw]
        assert own.mask.sum() <= 2 * 3 * 3  # 0.1 * 30 wide, and lower
        assert prior.mask.sum() >= 20 * 15  # 0.75 * 30 wide, 0.75 * 30 * 24/32 high, at least


def test_limit_prior_spreads_the_pictures_over_the_classes(tmp_path):
    prior = make_prior(tmp_path / "prior")

    def kept(num_images: int) -> list[str]:
        return [photo.subject for photo in limit_prior(prior, num_images).photos]

    assert kept(2) == ["a", "b"]
    assert kept(5) == ["a"] * 3 + ["b"] * 2
    assert kept(8) == kept(100) == ["a"] * 4 + ["b"] * 4


# The pool of collages


class Combined(SegMixDataset):
    """Tells which photos a collage combines, in place of painting it."""

    def _collage(self, photos, names, rng, scales, in_a_row=False):
        told = " ".join(photo.image.stem for photo in photos)
        nothing = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), bool)
        return Sample(*nothing, told, Conditioning(0, 0, 0, 0), mixed=True)


def pooled(size: int, refresh_steps: int = 1, seed: int = 0, **options) -> SampleOptions:
    return replace(ALWAYS, pool=Pool(size, refresh_steps, seed), **options)


def test_a_pool_leaves_which_photos_meet_as_it_was(subjects):
    """Either way each of the 6 photos comes first as often, with each of 3 others as often."""
    ordered_pairs = {f"{s}{i} {o}{j}" for s, o in ("ab", "ba") for i in range(3) for j in range(3)}
    for options in (ALWAYS, pooled(4, 2)):
        dataset = Combined(subjects, options)
        row = schedule(batch_size=2, last_step=9000)
        drawn = [dataset[draw][0].prompt for batch in row for draw in batch]
        counts = Counter(drawn)
        assert counts.keys() == ordered_pairs
        # pooled, about 9000 / 2 collages make the numbers: 250 of each pair, give or take 15
        assert all(abs(n / 18000 * 18 - 1) < 0.25 for n in counts.values())
        firsts = Counter(text.split()[0] for text in drawn)
        assert all(abs(n / 18000 * 6 - 1) < 0.1 for n in firsts.values())


def test_a_pool_is_bounded_and_refreshed_at_the_stated_rate(subjects):
    """With 8 collages, a new one every 5 steps, 3 draws a step: 15 uses each on average."""
    dataset = Combined(subjects, pooled(8, 5))
    uses: Counter = Counter()
    for batch in schedule(batch_size=3, last_step=4000):
        for draw in batch:
            [sample] = dataset[draw]
            _, number, half = sample.key
            assert half == 0 and 0 <= number - draw.step // 5 < 8
            uses[number] += 1
    assert set(uses) <= set(range(8 + 4000 // 5))
    settled = [uses[number] for number in range(8, 4000 // 5)]
    assert sum(settled) / len(settled) == pytest.approx(15, rel=0.01)
    # 120 draws while it is there, an eighth of them its own: standard deviation 3.6
    assert np.std(settled) == pytest.approx((120 * 1 / 8 * 7 / 8) ** 0.5, rel=0.1)


def test_a_pooled_collage_is_the_same_whenever_it_is_drawn(tmp_path, subjects):
    """And another run's, or the next one's, is another; the prior's half belongs to it."""
    prior = make_prior(tmp_path / "prior")
    seen: dict[tuple, bytes] = {}
    for seed in (0, 1):
        dataset = SegMixDataset(subjects, pooled(3, 50, seed, random_flip=True), prior)
        for i in range(40):
            samples = dataset[Draw(i % 6, i, f"draw {i}")]
            assert [sample.key[2] for sample in samples] == [0, 1]
            for sample in samples:
                pixels = sample.pixels.tobytes() + sample.mask.tobytes()
                assert seen.setdefault((seed, sample.key), pixels) == pixels
    assert len(set(seen.values())) == len(seen) == 2 * 3 * 2


def test_a_pool_touches_neither_the_coin_nor_plain_photos(subjects):
    options = replace(ALWAYS, segmix_prob=0.4, segmix_start_step=10, random_flip=True)
    without = SegMixDataset(subjects, options)
    within = SegMixDataset(subjects, replace(options, pool=Pool(4, 3, 0)))
    mixed = 0
    for i in range(200):
        draw = Draw(i % 6, i, f"draw {i}")
        [one], [two] = without[draw], within[draw]
        assert one.mixed == two.mixed
        mixed += one.mixed
        if not one.mixed:
            np.testing.assert_array_equal(one.pixels, two.pixels)
            assert (one.prompt, one.conditioning) == (two.prompt, two.conditioning)
            assert one.key is two.key is None  # its crop does not come again
    assert 50 < mixed < 100


def test_workers_and_a_resumed_run_draw_from_the_same_pool(subjects):
    options = pooled(3, 2, segmix_prob=0.7, random_flip=True)
    whole = schedule(batch_size=2)
    alone = list(make_loader(SegMixDataset(subjects, options), whole, num_workers=0))
    for first_step, num_workers in ((0, 2), (5, 0)):
        later = replace(whole, first_step=first_step)
        loader = make_loader(SegMixDataset(subjects, options), later, num_workers)
        for one, two in zip(alone[first_step:], loader, strict=True):
            assert_equal_batches(one, two)
            assert one.keys == two.keys


# Batches


def test_shapes_and_types_of_a_batch(tmp_path, subjects):
    dataset = SegMixDataset(subjects, ALWAYS, make_prior(tmp_path / "prior"))
    [batch] = make_loader(dataset, schedule(batch_size=3, last_step=1), 0)
    assert (batch.pixels.shape, batch.pixels.dtype) == ((6, SIZE, SIZE, 3), torch.uint8)
    assert (batch.mask.shape, batch.mask.dtype) == ((6, 1, SIZE, SIZE), torch.bool)
    assert batch.conditioning.tolist() == [[SIZE, SIZE, 0, 0]] * 6
    assert (len(batch.prompts), len(batch.mixed), batch.num_subjects) == (6, 6, 3)
    assert batch.to(torch.device("cpu")).prompts == batch.prompts


def test_to_float_maps_0_and_255_to_minus_1_and_1_channels_first():
    pixels = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    pixels[0, 1, 2] = torch.tensor([255, 0, 255])
    floats = to_float(pixels)
    assert (floats.shape, floats.dtype) == ((1, 3, 2, 3), torch.float32)
    assert floats[0, :, 1, 2].tolist() == [1.0, -1.0, 1.0]
    assert floats[0, :, 0, 0].tolist() == [-1.0, -1.0, -1.0]


def test_each_photo_and_cutout_is_decoded_once(folder, subjects):
    """Once all have been drawn, the files can go."""
    dataset = SegMixDataset(subjects, replace(ALWAYS, segmix_prob=0.5))
    order = random.Random(0)
    wanted = [draw._replace(photo=order.randrange(6)) for draw in draws(200)]
    before = [dataset[draw] for draw in wanted]
    for path in folder.path.glob("*.[jp][pn]g"):
        path.unlink()
    for draw, [sample] in zip(wanted, before, strict=True):
        np.testing.assert_array_equal(dataset[draw][0].pixels, sample.pixels)


def test_a_big_photo_is_kept_at_training_size(tmp_path):
    folder = DataFolder(tmp_path, first(NAMES, 1), 1)
    noise(640, 480).save(folder.path / "a0.jpg")
    Image.new("L", (640, 480), 255).crop((-64, -48, 576, 432)).save(folder.path / "mask_a0.png")
    subjects = load_subjects(folder.path)
    [sample] = SegMixDataset(subjects, NEVER)[Draw(0, 0, "x")]
    assert sample.conditioning[:2] == (480, 640)
    assert sample.pixels.shape == (SIZE, SIZE, 3)


def test_cached_crops_are_few_and_a_key_tells_the_pixels(subjects):
    """Plain photos come again under their key; every collage is a new picture without one."""
    options = replace(ALWAYS, segmix_prob=0.3, num_crops=4, random_flip=True)
    dataset = SegMixDataset(subjects, options)
    seen: dict[tuple, bytes] = {}
    for i in range(1000):
        [sample] = dataset[Draw(i % len(subjects.photos), 0, f"crop {i}")]
        assert (sample.key is None) == sample.mixed
        if sample.key is not None:
            pixels = sample.pixels.tobytes()
            assert seen.setdefault(sample.key, pixels) == pixels
    photos = {key[0] for key in seen}
    assert len(photos) == len(subjects.photos)
    assert len(seen) == len(photos) * 4 * 2  # crops and flips
