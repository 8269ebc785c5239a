"""Several subjects in one picture, whole pictures without a mask, and shares of sources."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers import HEIGHT, NAMES, WIDTH, DataFolder, noise
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_data import ALWAYS, NEVER, SIZE, assert_equal_batches, make_prior, schedule
from test_metadata import problems_of
from training import EXAMPLE

from detect_and_compare.references import ReferencesError, load_references
from mudi import preview
from mudi.data import Draw, DrawSchedule, SegMixDataset, collage_sheet, make_loader
from mudi.masks.folder import find_jobs
from mudi.metadata import load_subjects
from mudi.segmix import SDXL_STYLE, collage_prompt
from mudi.subjects import pattern
from mudi.training import checks
from mudi.training.args import TrainingArgs

TOGETHER = "a olis robot hugs a hta teddy bear."
RED, BLUE = (220, 30, 30), (30, 30, 220)


def half_mask(left: bool) -> Image.Image:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    columns = slice(4, WIDTH // 2 - 4) if left else slice(WIDTH // 2 + 4, WIDTH - 4)
    mask[8:-8, columns] = 255
    return Image.fromarray(mask)


def add_scene(folder: DataFolder, **values: object) -> dict:
    """Add a picture of both subjects: a is red, at the left; b is blue, at the right."""
    image = Image.new("RGB", (WIDTH, HEIGHT), BLUE)
    image.paste(RED, (0, 0, WIDTH // 2, HEIGHT))
    image.save(folder.path / "both.png")
    half_mask(True).save(folder.path / "cut_a.png")
    half_mask(False).save(folder.path / "cut_b.png")
    cuts = [{"id": "a", "mask_path": "cut_a.png"}, {"id": "b", "mask_path": "cut_b.png"}]
    line = {"file_name": "both.png", "text": TOGETHER, "subjects": cuts, **values}
    folder.lines.append({key: value for key, value in line.items() if value is not ...})
    folder.save()
    return folder.lines[-1]


@pytest.fixture
def together(folder):
    add_scene(folder)
    return folder


# The format


def test_a_scene_is_one_picture_with_several_cuts_and_no_repeated_photo(together):
    found = load_subjects(together.path)
    assert found.warnings == ()
    [scene] = found.scenes
    assert (scene.image, scene.caption) == (together.path / "both.png", TOGETHER)
    assert scene.subjects == ("a", "b") and scene.place == f"{together.metadata}:8"
    assert [cut.mask.name for cut in scene.cuts] == ["cut_a.png", "cut_b.png"]
    assert len(found.photos) == 6 and found.pictures == [*found.photos, scene]
    assert found.photos_of("b")[-1] == scene.cuts[1]


def test_a_picture_whose_subjects_have_no_mask_is_whole(folder):
    add_scene(folder, subjects=[{"id": "a"}, {"id": "b", "mask_path": "cut_b.png"}])
    noise(seed=99).save(folder.path / "alone.png")
    alone = {"file_name": "alone.png", "text": "a olis robot.", "subjects": [{"id": "a"}]}
    folder.lines.append(alone)
    folder.save()
    both, one = load_subjects(folder.path).scenes
    assert [cut.subject for cut in both.cuts] == ["b"] and both.subjects == ("a", "b")
    assert (one.subjects, one.cuts) == (("a",), ())


FAULTS = [
    ({"subjects": []}, '"subjects" must be a list such as'),
    ({"subjects": ["a", "b"]}, '"subjects" must be a list such as'),
    ({"subjects": [{"mask_path": "cut_a.png"}]}, '"id" must be a non-empty text'),
    ({"subjects": [{"id": "z", "mask_path": "cut_a.png"}]}, 'unknown id "z"; the first line has'),
    (
        {"subjects": [{"id": "a", "mask_path": "cut_a.png"}, {"id": "a"}]},
        'subject "a" stands twice in this line; keep one',
    ),
    (
        {"subjects": [{"id": i, "mask_path": "cut_a.png"} for i in "ab"]},
        'mask "cut_a.png" stands twice in this line; keep one',
    ),
    ({"subjects": [{"id": "a", "mask_path": "no.png"}]}, 'no such mask: "no.png"'),
    ({"subjects": [{"id": "a", "mask_path": 3}]}, '"mask_path" must be a non-empty text'),
    ({"mask_path": "cut_a.png"}, '"mask_path" beside "subjects"'),
    ({"file_name": ...}, 'no "file_name"; add it to the line'),
    ({"text": ...}, 'no "text"; add it to the line'),
    ({"text": " "}, '"text" must be a non-empty text'),
]


@pytest.mark.parametrize("values, told", FAULTS, ids=lambda value: str(value)[:40])
def test_what_is_wrong_with_a_scene_is_told_once_with_its_place(folder, values, told):
    add_scene(folder, **values)
    [problem] = problems_of(folder.path)
    assert problem.startswith(f"{folder.metadata}:8: ") and told in problem


def test_a_broken_picture_of_two_masks_is_told_once(together):
    (together.path / "both.png").write_bytes(b"no picture")
    [problem] = problems_of(together.path)
    assert f"{together.metadata}:8: photo " in problem


def test_a_subject_without_any_mask_can_t_be_trained(folder):
    del folder.lines[4:]
    add_scene(folder, subjects=[{"id": "a", "mask_path": "cut_a.png"}, {"id": "b"}])
    [problem] = problems_of(folder.path)
    assert 'subject "b" (hta teddy bear) has no photo with a mask' in problem


def test_what_is_unwise_is_warned_of(together):
    """The same picture again as two lines, a caption without a name, "subjects" beside an id."""
    first = {"id": "a", "file_name": "both.png", "mask_path": "cut_a.png", "text": "olis robot"}
    second = {**first, "id": "b", "mask_path": "cut_b.png", "text": "hta teddy bear"}
    together.lines[-1]["text"] = "a olis robot and a bear"
    together.lines += [first, {**second, "subjects": []}]
    together.save()
    place = str(together.metadata)
    assert sorted(load_subjects(together.path).warnings) == [
        f'{place}:10: "both.png" is the photo of line 8; of several subjects make one line: '
        '"subjects"',
        f'{place}:10: "subjects" is not read beside "id"; leave one of them out',
        f'{place}:8: the caption lacks its subject\'s name "hta teddy bear"',
        f'{place}:9: "both.png" is the photo of line 8',
    ]


def test_generate_masks_passes_over_scenes_and_their_masks(together):
    problems: list[str] = []
    jobs = find_jobs(together.path, ["a", "b"], problems)
    assert problems == []
    assert [job.name for job in jobs] == [f"{subject}{i}.jpg" for subject in "ab" for i in range(3)]


# Samples


def scene_draw(seed: str) -> Draw:
    return Draw(6, 0, seed)  # after six photos


def test_a_scene_is_shown_whole_with_its_caption_once_an_epoch(together):
    dataset = SegMixDataset(load_subjects(together.path), NEVER)
    [sample] = dataset[scene_draw("x")]
    assert (sample.prompt, sample.mixed) == (TOGETHER, False)
    assert sample.mask.all()  # weight 1 all over, as a photo's
    assert TOGETHER in dataset.prompts()
    drawn = [draw.photo for [draw] in schedule(num_photos=7, last_step=21)]
    assert Counter(drawn) == dict.fromkeys(range(7), 3)


def test_a_mixed_scene_begins_a_collage_with_one_of_its_subjects(together):
    subjects = load_subjects(together.path)
    dataset = SegMixDataset(subjects, ALWAYS)
    samples = [dataset[scene_draw(f"{i}")][0] for i in range(40)]
    names = ("olis robot", "hta teddy bear")
    prompts = {collage_prompt(SDXL_STYLE, order) for order in (names, names[::-1])}
    assert {sample.prompt for sample in samples} == prompts
    # whichever begins, its cut-out is there: the scene's plain red or blue, which no photo has
    for sample in samples:
        colour = RED if sample.prompt.index("robot") < sample.prompt.index("bear") else BLUE
        assert (sample.pixels == colour).all(axis=2).any()


def test_a_scene_without_masks_stays_whole_and_its_cuts_join_others_collages(folder):
    add_scene(folder, subjects=[{"id": "a"}, {"id": "b", "mask_path": "cut_b.png"}])
    dataset = SegMixDataset(load_subjects(folder.path), ALWAYS)
    blue = [(dataset[Draw(0, 0, f"{i}")][0].pixels == BLUE).all(axis=2).any() for i in range(60)]
    assert 5 < sum(blue) < 30  # one of b's four cut-outs
    folder.lines[-1]["subjects"] = [{"id": "a"}, {"id": "b"}]
    folder.save()
    dataset = SegMixDataset(load_subjects(folder.path), ALWAYS)
    assert not dataset[scene_draw("x")][0].mixed
    assert collage_sheet(dataset, 8, seed=0).size == (4 * 320, 3 * 384)  # eight, and the scene


def test_a_scene_with_a_prior_set_goes_with_a_class_of_its_own(tmp_path, together):
    prior = make_prior(tmp_path / "classes")
    dataset = SegMixDataset(load_subjects(together.path), replace(NEVER, segmix_prob=0.5), prior)
    for i in range(20):
        own, of_class = dataset[scene_draw(f"{i}")]
        assert own.mixed == of_class.mixed
        if own.mixed:
            begins = "olis" if own.prompt.index("olis") < own.prompt.index("hta") else "hta"
            assert of_class.prompt.index("robot") < of_class.prompt.index("bear") or begins == "hta"
    batch = next(iter(make_loader(dataset, schedule(num_photos=7, batch_size=3), 0)))
    assert batch.pixels.shape == (6, SIZE, SIZE, 3)


def test_cut_mix_takes_no_scene_s_halves(together):
    dataset = SegMixDataset(load_subjects(together.path), replace(ALWAYS, mix="cutmix"))
    assert not dataset[scene_draw("x")][0].mixed
    for i in range(20):
        pixels = dataset[Draw(0, 0, f"{i}")][0].pixels
        assert not (pixels == BLUE).all(axis=2).any()


def test_a_preview_shows_the_scenes_too(together, tmp_path):
    words = f"--instance_data_dir {together.path} --output {tmp_path / 'sheet.png'}".split()
    preview.main(preview.parse_args([*words, "--num_collages", "4", "--resolution", "64"]))
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert sheet.size == (4 * 320, 2 * 384)  # four collages, and the scene below
    last = np.asarray(sheet.crop((0, 384, 320, 384 + 320)))
    assert (last == (255, 0, 255)).all(axis=2).sum() > 100  # the masks' outlines
    assert (last == RED).all(axis=2).sum() > 1000 and (last == BLUE).all(axis=2).sum() > 1000


def test_references_are_photos_of_one_subject_unless_they_are_cut_out(together):
    whole = load_references(together.path)
    assert [len(images) for images in whole.images.values()] == [3, 3]
    cut = load_references(together.path, crop=True)
    assert [len(images) for images in cut.images.values()] == [4, 4]
    del together.lines[1:4]
    together.save()
    with pytest.raises(ReferencesError, match="olis robot has no photo of its own"):
        load_references(together.path)


# Shares


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 400))
def test_every_window_holds_exactly_its_shares(shares, start):
    turns = pattern(tuple(shares))
    length = len(turns)
    window = [turns[place % length] for place in range(start, start + length)]
    whole = [Counter(window)[k] for k in range(len(shares))]
    assert [count * sum(shares) for count in whole] == [share * length for share in shares]


def test_sources_take_turns_as_evenly_as_can_be():
    assert pattern((1, 1)) == (0, 1)
    assert pattern((2, 6)) == (1, 0, 1, 1) or pattern((2, 6)) == (1, 1, 0, 1)
    turns = pattern((3, 7)) * 2
    rare = [place for place, k in enumerate(turns) if k == 0]
    assert {b - a for a, b in pairwise(rare)} <= {3, 4}


@pytest.fixture
def shared(folder):
    """Six photos and two made scenes; of four draws three are photos."""
    add_scene(folder, source="made")
    Image.new("RGB", (WIDTH, HEIGHT), (9, 200, 9)).save(folder.path / "more.png")
    folder.lines.append({**folder.lines[-1], "file_name": "more.png"})
    folder.lines[0]["shares"] = {"photos": 3, "made": 1}
    folder.save()
    return load_subjects(folder.path)


def drawn(subjects, **values) -> list[int]:
    return [
        draw.photo
        for draws in DrawSchedule(
            **{
                "num_photos": 8, "seed": 5, "batch_size": 1, "first_step": 0, "last_step": 40,
                "sources": subjects.sources, **values,
            }
        )
        for draw in draws
    ]  # fmt: skip


def test_at_batch_1_every_four_steps_in_a_row_have_three_photos(shared):
    photos = drawn(shared)
    for start in range(len(photos) - 3):
        assert sum(photo < 6 for photo in photos[start : start + 4]) == 3
    real, made = [p for p in photos if p < 6], [p for p in photos if p >= 6]
    for start in range(0, 30, 6):  # each source has epochs of its own
        assert sorted(real[start : start + 6]) == list(range(6))
    for start in range(0, 10, 2):
        assert sorted(made[start : start + 2]) == [6, 7]


@pytest.mark.parametrize("batch_size, accumulation", [(1, 1), (1, 2), (2, 1), (3, 4)])
def test_processes_together_and_a_resumed_run_keep_the_shares(shared, batch_size, accumulation):
    """Every window of four optimizer steps, over both processes, has three quarters of photos."""
    values = {"batch_size": batch_size, "accumulation": accumulation, "num_processes": 2}
    each = batch_size * accumulation
    both = [drawn(shared, process=p, **values) for p in (0, 1)]
    steps = [both[0][i : i + each] + both[1][i : i + each] for i in range(0, len(both[0]), each)]
    for start in range(len(steps) - 3):
        window = [photo for step in steps[start : start + 4] for photo in step]
        assert sum(photo < 6 for photo in window) * 4 == 3 * len(window)
    resumed = drawn(shared, process=1, first_step=7, **values)
    assert resumed == both[1][7 * each :]


def test_workers_see_the_same_samples_of_sources(shared):
    options = replace(ALWAYS, segmix_prob=0.5)
    plan = schedule(num_photos=8, sources=shared.sources)
    alone = make_loader(SegMixDataset(shared, options), plan, num_workers=0)
    workers = make_loader(SegMixDataset(shared, options), plan, num_workers=2)
    for one, two in zip(alone, workers, strict=True):
        assert_equal_batches(one, two)


def test_a_collage_stays_within_the_source_of_the_draw(shared):
    """What a photo begins has no made cut-out, though the made ones are b's too; and so the other
    way round, where the other subject's whole canvas colour tells.
    """
    dataset = SegMixDataset(shared, ALWAYS)
    made = [RED, BLUE, (9, 200, 9)]
    for i in range(40):
        real = dataset[Draw(i % 6, 0, f"{i}")][0].pixels
        assert not any((real == colour).all(axis=2).any() for colour in made)
        fed = dataset[Draw(6 + i % 2, 0, f"{i}")]
        colours = [(fed[0].pixels == colour).all(axis=2).sum() > 20 for colour in made]
        assert any(colours)


def test_a_source_that_lacks_a_subject_borrows_it(folder):
    add_scene(folder, source="made", subjects=[{"id": "a", "mask_path": "cut_a.png"}, {"id": "b"}])
    folder.lines[0]["shares"] = {"photos": 1, "made": 1}
    folder.save()
    assert SegMixDataset(load_subjects(folder.path), ALWAYS)[scene_draw("x")][0].mixed


@pytest.mark.parametrize(
    "shares, told",
    [
        ({"photos": 1, "made": 0.5}, '"shares" must give each source its draws'),
        ({"photos": 1, "made": 0}, '"shares" must give each source its draws'),
        ({"photos": True}, '"shares" must give each source its draws'),
        (["photos"], '"shares" must give each source its draws'),
        ({"photos": 600, "made": 401}, "1000 in all at most"),
        ({"photos": 1}, 'source "made" has no share; the first line has: photos'),
        ({"photos": 1, "made": 1, "x": 1}, 'no line has the source "x"; drop it'),
    ],
)
def test_what_is_wrong_with_shares_is_told(folder, shares, told):
    add_scene(folder, source="made")
    folder.lines[0]["shares"] = shares
    folder.save()
    [problem] = problems_of(folder.path)
    assert told in problem


def test_sources_mean_nothing_where_there_are_no_shares(folder):
    """So that a folder whose lines happen to have that key is drawn as ever."""
    for line in folder.lines[1:4]:
        line["source"] = {"url": "…"}
    folder.save()
    found = load_subjects(folder.path)
    assert found.sources == () and {photo.source for photo in found.photos} == {"photos"}


def test_a_pool_and_shares_are_told_to_exclude_each_other(shared):
    args = TrainingArgs(instance_data_dir=str(shared.folder), segmix_pool=4)
    [complaint] = checks.mixing_complaints(args, shared, SDXL_STYLE)
    assert "--segmix_pool" in complaint


# Training


def test_training_on_scenes_and_shares_resumes_bit_for_bit(sdxl_backbone, tmp_path):
    """Four steps at once, or two and two; the tiny model, real script, latents cached."""
    from training import lora_of

    lines = [json.loads(line) for line in (EXAMPLE / "metadata.jsonl").read_text().splitlines()]
    data = tmp_path / "data"
    data.mkdir()
    for line in lines[1:]:
        for key in ("file_name", "mask_path"):
            (data / line[key]).write_bytes((EXAMPLE / line[key]).read_bytes())
    whole = DataFolder(tmp_path / "other", {k: NAMES[k] for k in "ab"})
    scene = add_scene(whole)
    for name in ("both.png", "cut_a.png", "cut_b.png"):
        (data / name).write_bytes((whole.path / name).read_bytes())
    lines[0]["shares"] = {"photos": 1, "made": 1}
    names = list(lines[0]["id"])
    cuts = [{**cut, "id": i} for cut, i in zip(scene["subjects"], names, strict=True)]
    lines.append({**scene, "subjects": cuts, "source": "made"})
    (data / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    flags = "--cache_latents --max_train_steps"
    once = sdxl_backbone.train(tmp_path / "once", f"{flags} 4", data=data)
    sdxl_backbone.train(tmp_path / "twice", f"{flags} 2 --checkpointing_steps 2", data=data)
    twice = sdxl_backbone.train(
        tmp_path / "twice", f"{flags} 4 --resume_from_checkpoint latest", data=data
    )
    one, two = lora_of(once), lora_of(twice)
    assert all((one[key] == two[key]).all() for key in one)
