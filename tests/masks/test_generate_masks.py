"""generate_masks.py from a bare folder of photos to one that training accepts, on tiny models."""

import json
import os
from unicodedata import normalize

import numpy as np
import pytest
import torch
from helpers import ROOT, DataFolder
from nbclient.exceptions import CellExecutionError
from notebooks import count_pictures, execute, text_of
from PIL import Image

import generate_masks
from mini.tiny import save_sam_that_sees_brightness, save_tiny_owlv2, save_tiny_sam
from mudi.ground.errors import SetupError
from mudi.ground.sheets import contact_sheet
from mudi.images import Box, load_mask, tight_box
from mudi.masks import segment
from mudi.masks.folder import find_jobs
from mudi.masks.making import make_masks
from mudi.metadata import load_subjects

torch.set_num_threads(1)
QUERY = ["--query", "a=robot", "b=teddy bear"]
NAMES = ["--write_metadata", "--names", "a=olis robot", "b=hta teddy bear"]


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """One that always finds one box, the picture; one that finds several."""
    folder = tmp_path_factory.mktemp("owlv2")
    return {n: str(save_tiny_owlv2(folder / str(n), grid=n)) for n in (1, 2)}


def draw_photo(path, box, size=(96, 64), exif=None, colours=((220, 30, 30), (120, 120, 120))):
    """A photo of a plain subject that fills box, on a plain background."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colours[1])
    image.paste(colours[0], box)
    image.save(path, **({"exif": exif} if exif else {}))


@pytest.fixture
def photos(tmp_path):
    """Three photos a subject, by name and by sub-folder."""
    for i in range(3):
        draw_photo(tmp_path / f"a{i}.png", (20 + i, 10, 60, 50))
        draw_photo(tmp_path / "b" / f"{i}.png", (30 + i, 20, 50, 40), size=(64, 96))
    return tmp_path


def run(folder, detector, *words, query=QUERY, threshold="0.0", segmenter="foreground"):
    argv = ["--instance_data_dir", str(folder), *query, "--detector", detector]
    argv += ["--threshold", threshold, "--segmenter", segmenter, "--device", "cpu", *words]
    generate_masks.main(generate_masks.parse_args(argv))


def save_lines(folder, *lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text)


def test_a_bare_folder_becomes_one_that_training_accepts(photos, detectors):
    run(photos, detectors[1], *NAMES)
    subjects = load_subjects(photos)
    assert subjects.names == {"a": "olis robot", "b": "hta teddy bear"}
    assert [photo.mask.name for photo in subjects.photos_of("a")] == [
        f"mask_a{i}.png" for i in range(3)
    ]
    expected = np.zeros((64, 96), dtype=bool)
    expected[10:50, 21:60] = True
    assert np.array_equal(load_mask(photos / "mask_a1.png"), expected)
    assert subjects.photos[0].caption == "A photo of a olis robot."
    assert Image.open(photos / "masks_sheet.png").size[0] > 600


def corners_of(found):
    return sorted(tuple(detection.box) for detection in found)


def test_boxes_are_those_of_the_padded_square_cut_to_the_photo(detectors):
    """Sides of 48 px round (48, 48), (96, 48), ... of a 96 px square; some lie in its padding."""
    detector = segment.Detector(detectors[2])
    wide, high = Image.new("RGB", (96, 64)), Image.new("RGB", (64, 96))
    found = detector([wide, high], [["robot"], ["robot"]], threshold=0.0)
    assert np.allclose(corners_of(found[0]), [(24, 24, 72, 64), (72, 24, 96, 64)], atol=1)
    assert np.allclose(corners_of(found[1]), [(24, 24, 64, 72), (24, 72, 64, 96)], atol=1)
    assert all(found[0][i].score >= found[0][i + 1].score for i in range(len(found[0]) - 1))


def test_boxes_of_a_nine_megapixel_photo_are_in_its_own_pixels(detectors):
    photo = Image.new("RGB", (4032, 2268))
    [[found]] = segment.Detector(detectors[1])([photo], [["dog"]], 0.0)
    assert found.box == Box(0, 0, 4032, 2268)
    [found] = segment.Detector(detectors[2])([photo], [["dog"]], 0.0)
    expected = [(1008, 1008, 3024, 2268), (3024, 1008, 4032, 2268)]
    assert np.allclose(corners_of(found), expected, atol=2)


def test_boxes_are_widened_by_a_part_of_the_pictures_side():
    assert segment.widen(Box(10, 10, 20, 30), (200, 100)) == Box(0, 5, 30, 35)
    assert segment.widen(Box(190, 90, 200, 100), (200, 100)) == Box(180, 85, 200, 100)


def test_several_boxes_are_listed_until_one_is_picked(photos, detectors):
    with pytest.raises(SystemExit) as stopped:
        run(photos, detectors[2])
    told = str(stopped.value)
    assert "a0.png: 2 boxes" in told and "--pick largest|best" in told and "--box a0.png=" in told
    assert not list(photos.glob("mask_a*"))
    assert (photos / "masks_sheet.png").is_file()
    run(photos, detectors[2], "--pick", "largest")
    assert len(list(photos.rglob("mask_*.png"))) == 6


def test_no_box_is_listed_while_the_others_are_made(photos, detectors):
    with pytest.raises(SystemExit, match=r'a1.png: no "robot" above 1.0; lower --threshold'):
        run(photos, detectors[1], "--box", "a0.png=15,5,70,60", threshold="1.0")
    assert load_mask(photos / "mask_a0.png").sum() == 40 * 40
    run(photos, detectors[1])  # what was made is kept, the rest is added
    assert len(list(photos.rglob("mask_*.png"))) == 6


def test_a_photo_helped_by_hand_is_made_anew_and_may_be_named_by_its_folder(photos, detectors):
    draw_photo(photos / "a" / "0.png", (30, 20, 50, 40))
    run(photos, detectors[1])
    with pytest.raises(SystemExit, match=r"0.png could be a/0.png or b/0.png; write it so"):
        run(photos, detectors[1], "--box", "0.png=0,0,40,90")
    run(photos, detectors[1], "--box", "b/0.png=0,0,40,90")
    assert load_mask(photos / "b" / "mask_0.png").sum() == 10 * 20
    assert load_mask(photos / "a" / "mask_0.png").sum() == 20 * 20


def test_a_box_is_that_of_the_very_name_and_of_no_photo_elsewhere(photos, detectors):
    """One of the same name in a sub-folder keeps its mask. Decomposed letters are the same."""
    draw_photo(photos / "b" / "a0.png", (30, 20, 50, 40))
    by_hand = Image.new("L", (96, 64))
    by_hand.paste(255, (0, 0, 20, 20))
    by_hand.save(photos / "b" / "mask_a0.png")
    kept = (photos / "b" / "mask_a0.png").read_bytes()
    hand = ["--box", "a0.png=20,10,60,30", "--point", "a0.png=25,15", "--negative_point"]
    run(photos, detectors[1], *hand, "a0.png=25,35")
    assert load_mask(photos / "mask_a0.png").sum() == 40 * 20
    assert (photos / "b" / "mask_a0.png").read_bytes() == kept
    draw_photo(photos / "b" / "é.png", (30, 20, 50, 40))
    run(photos, detectors[1], "--box", f"{normalize('NFD', 'é')}.png=0,0,40,90")
    assert load_mask(photos / "b" / "mask_é.png").sum() == 10 * 20
    draw_photo(photos / "b" / "a1.png", (30, 20, 50, 40))
    with pytest.raises(SystemExit, match=r"./b/a1.png and b/a1.png are one photo; write it in one"):
        run(photos, detectors[1], "--box", "b/a1.png=0,0,40,90", "--point", "./b/a1.png=35,25")


def test_boxes_of_a_name_that_several_photos_have_are_refused_before_a_mask_is_made(photos):
    for folder in ("a", "b"):
        draw_photo(photos / folder / "0.png", (30, 20, 50, 40))
    jobs = find_jobs(photos, ["a", "b"], problems := [])
    with pytest.raises(SetupError, match=r"^0.png could be a/0.png or b/0.png; write it so$"):
        make_masks(jobs, None, {"0.png": (0, 0, 40, 90)})
    with pytest.raises(SetupError, match=r"^no photo 9.png to give a box or point$"):
        make_masks(jobs, None, points={"9.png": [(1, 1)]})
    assert not problems and not list(photos.rglob("mask_*"))


def test_flags_may_be_repeated(photos, detectors):
    hand = [word for i in range(3) for word in ("--box", f"a{i}.png=0,0,70,{20 + i}")]
    queries = ["--query", "a=robot", "--query", "b=teddy bear"]
    names = ["--names", "a=olis robot", "--names", "b=hta teddy bear", "--write_metadata"]
    run(photos, detectors[1], *names, *hand, query=queries)
    made = [tight_box(load_mask(photos / f"mask_a{i}.png")) for i in range(3)]
    assert made == [Box(20 + i, 10, 60, 20 + i) for i in range(3)]
    assert load_subjects(photos).names == {"a": "olis robot", "b": "hta teddy bear"}


@pytest.mark.parametrize(
    ("hand", "told"),
    [
        ("--box a0.png=60,50,20,10", "the box 60,50,20,10 holds nothing of the photo"),
        ("--box a0.png=500,500,600,600", "holds nothing of the photo, which is 96x64 px"),
        ("--point a0.png=96,10", "the point 96,10 lies outside the photo 0,0,96,64"),
        ("--point a0.png=-40,-40", "the point -40,-40 lies outside the photo"),
        ("--box a0.png=30,20,50,40 --point a0.png=22,12", "22,12 lies outside the box 30,20,50,40"),
    ],
)
def test_boxes_and_points_must_lie_in_the_photo(photos, detectors, hand, told):
    with pytest.raises(SystemExit, match=told):
        run(photos, detectors[1], *hand.split())
    assert not (photos / "mask_a0.png").exists()
    assert len(list(photos.rglob("mask_*.png"))) == 5


def test_points_choose_the_piece_that_they_lie_on(photos, detectors):
    image = Image.open(photos / "a0.png")
    image.paste((30, 30, 220), (70, 5, 75, 10))
    image.save(photos / "a0.png")
    run(photos, detectors[1], "--point", "a0.png=72,7")
    assert load_mask(photos / "mask_a0.png").sum() == 5 * 5


def test_negative_points_go_with_points_a_box_or_the_detectors_own(photos, detectors):
    """A photo's own --negative_point is heeded whatever found the subject; masks are made anew."""
    for name in ("a0.png", "a1.png", "a2.png"):
        image = Image.open(photos / name)
        image.paste((30, 30, 220), (40, 40, 60, 60))  # a blue thing that touches the subject
        image.save(photos / name)
    run(photos, detectors[1])
    touched = load_mask(photos / "mask_a0.png").sum()
    assert touched == 40 * 40 + 20 * 10
    hand = ["--negative_point", *(f"a{i}.png=50,55" for i in range(3))]
    hand += ["--point", "a0.png=25,15", "--box", "a1.png=0,0,70,58"]
    run(photos, detectors[1], *hand)
    for i in range(3):
        mask = load_mask(photos / f"mask_a{i}.png")
        assert mask.sum() == (40 - i) * 40 - 20 * 10 and not mask[55, 50]
    with pytest.raises(SystemExit, match="the point 96,55 lies outside the photo 0,0,96,64"):
        run(photos, detectors[1], "--negative_point", "a0.png=96,55")


def test_existing_masks_are_kept_unless_overwritten(photos, detectors):
    own = Image.new("L", (96, 64), 0)
    own.paste(255, (0, 0, 48, 32))
    own.save(photos / "mask_a0.png")
    run(photos, detectors[1])
    assert load_mask(photos / "mask_a0.png").sum() == 48 * 32
    run(photos, detectors[1], "--overwrite")
    assert load_mask(photos / "mask_a0.png").sum() == 40 * 40


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_sheet_is_the_same_after_an_interruption(tmp_path, detectors, suffix):
    """Boxes and notes of masks that are there already are drawn as when they were made."""
    for i in range(3):
        draw_photo(tmp_path / f"a{i}.png", (20 + i, 10, 60, 50))
    lines = [{"id": "a", "file_name": f"a{i}.png", "mask_path": f"m{i}.{suffix}"} for i in range(3)]
    save_lines(tmp_path, {"id": {"a": "x"}}, *lines)
    query = ["--query", "a=robot"]
    run(tmp_path, detectors[1], query=query)
    sheet = np.asarray(Image.open(tmp_path / "masks_sheet.png"))
    (tmp_path / f"m1.{suffix}").unlink()
    run(tmp_path, detectors[1], query=query)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks_sheet.png")), sheet)
    own = Image.new("L", (96, 64), 0)
    own.paste(255, (0, 0, 48, 32))
    own.save(tmp_path / f"m1.{suffix}")
    run(tmp_path, detectors[1], query=query)
    other = np.asarray(Image.open(tmp_path / "masks_sheet.png"))
    assert np.array_equal(other[:, :320], sheet[:, :320])
    assert not np.array_equal(other[:, 320:640], sheet[:, 320:640])


def test_a_damaged_mask_does_not_stop_the_others(photos, detectors):
    (photos / "mask_a0.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"a0.png: its mask mask_a0.png cannot be read; delete"):
        run(photos, detectors[1])
    assert len(list(photos.rglob("mask_*.png"))) == 6
    assert (photos / "masks_sheet.png").is_file()
    run(photos, detectors[1], "--overwrite")
    assert load_mask(photos / "mask_a0.png").sum() == 40 * 40


def test_a_listed_photo_may_be_named_like_a_mask(photos, detectors):
    draw_photo(photos / "mask_of_a.png", (20, 10, 60, 50))
    draw_photo(photos / "mask_of_nobody.png", (20, 10, 60, 50))
    save_lines(photos, {"id": {"a": "x"}}, {"id": "a", "file_name": "mask_of_a.png"})
    run(photos, detectors[1])
    assert load_mask(photos / "mask_mask_of_a.png").sum() == 40 * 40
    assert not (photos / "mask_mask_of_nobody.png").exists()


def test_the_metadatas_mask_names_and_ids_come_first(tmp_path, detectors):
    """Lossy only where the metadata says so; its captions stay as they are."""
    data = DataFolder(tmp_path, {"a": "olis robot", "b": "hta teddy bear"})
    for line in data.lines[1:]:
        (tmp_path / line["mask_path"]).unlink()
        line["mask_path"] = line["mask_path"].replace(".png", ".jpg").replace("mask_", "m/")
        draw_photo(tmp_path / line["file_name"], (20, 10, 60, 50))
    data.save()
    draw_photo(tmp_path / "b_new.png", (20, 10, 60, 50))
    run(tmp_path, detectors[1], *NAMES)
    subjects = load_subjects(tmp_path)
    assert [p.caption for p in subjects.photos_of("b")][-1] == "A photo of a hta teddy bear."
    assert subjects.photos[0].caption == data.lines[1]["text"]
    assert Image.open(tmp_path / "m/a0.jpg").format == "JPEG"


@pytest.mark.parametrize(("listed", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_is_the_same_in_composed_and_decomposed_letters(
    tmp_path, detectors, listed, on_disk
):
    """Copied from a Mac: a mask that is there, one without a prefix, one to make; and a scene."""

    def there(name):
        return tmp_path / normalize(on_disk, name)

    def line(name, **more):
        text = "An olis robot, my words."
        return {"id": "a", "file_name": normalize(listed, name), "text": text, **more}

    for name in ("aé0.png", "aé1.png", "aé2.png", "both é.png"):
        draw_photo(there(name), (20, 10, 60, 50))
    masks = [there(name) for name in ("mask_aé0.png", "cut é.png")]
    for path in masks:
        draw_photo(path, (0, 0, 30, 30), colours=("white", "black"))
    cut = {"mask_path": normalize(listed, "cut é.png")}
    scene = {"file_name": normalize(listed, "both é.png"), "text": "olis robot"}
    lines = [line("aé0.png"), line("aé1.png", **cut), line("aé2.png")]
    save_lines(tmp_path, {"id": {"a": "olis robot"}}, *lines, {**scene, "subjects": [{"id": "a"}]})
    kept, query = [path.read_bytes() for path in masks], ["--query", "a=robot"]

    run(tmp_path, detectors[1], "--write_metadata", query=query)
    assert [path.read_bytes() for path in masks] == kept
    subjects = load_subjects(tmp_path)
    assert [photo.image for photo in subjects.photos] == [there(f"aé{i}.png") for i in range(3)]
    assert [photo.mask for photo in subjects.photos[:2]] == masks
    written = (tmp_path / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(text)["text"] for text in written[1:4]] == [lines[0]["text"]] * 3
    assert len(written) == 5 and len(list(tmp_path.glob("*.png"))) == 8  # with the sheet


def test_photos_of_names_that_look_alike_stay_two(tmp_path):
    for form in ("NFC", "NFD"):
        draw_photo(tmp_path / normalize(form, "aé.png"), (20, 10, 60, 50))
    save_lines(tmp_path, {"id": {"a": "x"}}, {"id": "a", "file_name": normalize("NFC", "aé.png")})
    jobs = find_jobs(tmp_path, ["a"], problems := [])
    assert [job.photo for job in jobs] == sorted(tmp_path.glob("a*.png")) and not problems


def test_a_photo_on_a_line_for_each_of_its_subjects_gets_a_mask_for_each(photos, detectors):
    draw_photo(photos / "both.png", (20, 10, 60, 50))
    lines = [
        {"id": i, "file_name": "both.png", "mask_path": f"both_{i}.png", "text": f"{i}, my words"}
        for i in "ab"
    ]
    save_lines(photos, {"id": {"a": "olis robot", "b": "hta teddy bear"}}, *lines, lines[0])
    with pytest.raises(SystemExit, match=r"both.png stands on several lines, a mask each; leave"):
        run(photos, detectors[1], "--box", "both.png=0,0,70,60")
    run(photos, detectors[1], "--write_metadata")
    assert load_mask(photos / "both_a.png").sum() == load_mask(photos / "both_b.png").sum() == 1600
    written = (photos / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(text) for text in written[1:4]] == [*lines, lines[0]]
    assert len(load_subjects(photos).photos) == 3 + 6

    for line in lines:
        del line["mask_path"]
    save_lines(photos, {"id": {"a": "olis robot", "b": "hta teddy bear"}}, *lines)
    with pytest.raises(SystemExit, match=r"a and b have one mask, mask_both.png; give each line a"):
        run(photos, detectors[1])


def test_a_photo_turned_by_exif_gets_an_upright_mask(tmp_path, detectors):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    for i, name in enumerate(["a0.jpg", "a1.jpg", "b0.jpg", "b1.jpg"]):
        draw_photo(tmp_path / name, (20 + i, 10, 60, 50), exif=exif)
    run(tmp_path, detectors[1], *NAMES)
    assert load_mask(tmp_path / "mask_a0.png").shape == (96, 64)
    load_subjects(tmp_path)


def test_sam_makes_masks_of_the_photos_own_size(photos, tmp_path):
    kind = save_tiny_sam(tmp_path / "sam.pth")
    segmenter = segment.SamSegmenter(tmp_path / "sam.pth", kind)
    image = Image.open(photos / "a0.png").convert("RGB")
    mask = segmenter(image, Box(20, 10, 60, 50))
    assert (mask.shape, mask.dtype) == ((64, 96), np.dtype(bool))
    assert np.array_equal(mask, segmenter(image, Box(20, 10, 60, 50)))
    assert segmenter(image, None, [(40, 30)]).shape == (64, 96)


@pytest.mark.parametrize("size", [(512, 352), (352, 512)])
def test_sams_mask_and_box_have_the_scale_of_a_photo_that_is_not_square(tmp_path, size):
    """The longer side becomes 256 px: the white rectangle lies on patches, its edges are known."""
    kind = save_sam_that_sees_brightness(tmp_path / "sam.pth")
    segmenter = segment.SamSegmenter(tmp_path / "sam.pth", kind)
    box = Box(64, 32, 224, 160)
    photo = Image.new("RGB", size, "black")
    photo.paste("white", box)
    asked = []
    encoder = segmenter.model.prompt_encoder
    encoder.register_forward_hook(lambda *call: asked.append(call[2]["boxes"]), with_kwargs=True)
    mask = segmenter(photo, box)
    assert tight_box(mask) == box
    assert mask.sum() > 0.998 * box.width * box.height  # interpolation rounds the corners
    assert asked[0].flatten().tolist() == [32, 16, 112, 80]


def test_the_command_writes_sams_masks(tmp_path, detectors):
    kind = save_sam_that_sees_brightness(tmp_path / "sam.pth")
    boxes = [Box(64, 32, 224, 160), Box(96, 64, 224, 160)]
    photos = tmp_path / "photos"
    for i, box in enumerate(boxes):
        draw_photo(photos / f"a{i}.png", box, (512, 352), colours=("white", "black"))
    sam = ["--sam_checkpoint", str(tmp_path / "sam.pth"), "--sam_type", kind]
    run(photos, detectors[1], *sam, segmenter="sam")
    assert [tight_box(load_mask(photos / f"mask_a{i}.png")) for i in (0, 1)] == boxes


def test_sams_specks_and_what_lies_outside_the_box_are_no_part_of_a_mask(tmp_path, detectors):
    kind = save_sam_that_sees_brightness(tmp_path / "sam.pth")
    photos = tmp_path / "photos"
    subject, beside, speck = Box(192, 192, 320, 320), Box(0, 0, 96, 96), Box(336, 336, 344, 344)
    for name in ("a0.png", "a1.png"):
        draw_photo(photos / name, subject, (512, 512), colours=("white", "black"))
    photo = Image.open(photos / "a0.png")
    photo.paste("white", beside)
    photo.paste("white", speck)  # 64 px of 16384
    photo.save(photos / "a0.png")
    sam = ["--sam_checkpoint", str(tmp_path / "sam.pth"), "--sam_type", kind]
    box = ["--box", *(f"{name}=100,100,360,360" for name in ("a0.png", "a1.png"))]
    run(photos, detectors[1], *sam, *box, segmenter="sam")
    made = [load_mask(photos / f"mask_{name}") for name in ("a0.png", "a1.png")]
    assert tight_box(made[0]) == subject
    np.testing.assert_array_equal(made[0], made[1])


def test_the_notebook_does_the_same_and_takes_boxes_by_hand(photos, detectors, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = execute(
        ROOT / "automatic_mask_generation.ipynb",
        FOLDER=f"Path({str(photos)!r})",
        QUERIES='{"a": "robot", "b": "teddy bear"}',
        NAMES='{"a": "olis robot", "b": "hta teddy bear"}',
        DETECTOR=repr(detectors[2]),
        THRESHOLD="0.0",
        SEGMENTER='"foreground"',
        DEVICE='"cpu"',
        BOXES='{f"{i}.png": (0, 0, 64, 96) for i in range(3)}',
        POINTS='{f"a{i}.png": [(40, 30)] for i in range(3)}',
        NEGATIVES='{"a0.png": [(5, 5)]}',
    )
    assert 'a0.png: 2 boxes for "robot"' in text_of(notebook)
    assert "metadata.jsonl is ready" in text_of(notebook)
    assert count_pictures(notebook) == 2
    assert len(load_subjects(photos).photos) == 6


def test_the_notebook_stops_where_the_folder_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, told in (("nowhere", "no such folder"), (".", "no photos")):
        with pytest.raises(CellExecutionError, match=told) as stopped:
            folder = f"Path({str(tmp_path / name)!r})"
            execute(ROOT / "automatic_mask_generation.ipynb", FOLDER=folder)
        assert "jobs = find_jobs" in str(stopped.value)
    with pytest.raises(ValueError, match="no pictures to lay on a sheet"):
        contact_sheet([], [])


def test_a_sliver_of_a_photo_and_a_threshold_that_is_none(tmp_path, detectors):
    draw_photo(tmp_path / "a0.png", (1000, 0, 2000, 1), size=(3000, 2))
    run(tmp_path, detectors[1])
    assert (tmp_path / "masks_sheet.png").is_file()
    with pytest.raises(SystemExit, match=r"--threshold 7.0: must be between 0 and 1"):
        run(tmp_path, detectors[1], threshold="7")


def test_what_cannot_be_loaded_is_one_line(photos, detectors, tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    with pytest.raises(SystemExit, match=r"broken.pth: no vit_b"):
        broken = ["--sam_checkpoint", str(tmp_path / "broken.pth"), "--sam_type", "vit_b"]
        run(photos, detectors[1], *broken, segmenter="sam")
    with pytest.raises(SystemExit, match="detector /nowhere: cannot be loaded"):
        run(photos, "/nowhere")


@pytest.fixture
def no_models(monkeypatch):
    monkeypatch.setattr(segment, "Detector", lambda *_: pytest.fail("a model was loaded"))


def test_bad_input_is_told_together_before_a_model_is_loaded(photos, no_models):
    draw_photo(photos / "zebra.png", (20, 10, 60, 50))
    draw_photo(photos / "a0.webp", (20, 10, 60, 50))
    (photos / "metadata.jsonl").write_text('{"id": {"a": "x"}}\n{broken\n')
    hand = [
        "--box",
        "a1.png=1,2,3",
        "a2.png=1,1,9,9",
        "a2.png=2,2,9,9",
        "--point",
        "nosuch.png=1,2",
        "--negative_point",
        "neverwas.png=1,2",
        "a1.png=1",
    ]
    words = ["--sam_checkpoint", "nowhere.pth", "--device", "cuda:99", "--write_metadata"]
    with pytest.raises(SystemExit) as stopped:
        run(photos, "x", *hand, *words, segmenter="sam")
    told = str(stopped.value)
    for text in (
        "zebra.png: belongs to none of a, b", "--box a1.png=1,2,3: write it as FILE=x,y,x,y",
        "no photo nosuch.png", "no photo neverwas.png",
        "--negative_point a1.png=1: write it as FILE=x,y",
        "metadata.jsonl:2: broken JSON", "is another photo's",
        "--box a2.png: given twice", "--device cuda:99: there is no such GPU here",
        "SAM checkpoint nowhere.pth: no such file; download sam_vit_h",
    ):  # fmt: skip
        assert text in told
    with pytest.raises(SystemExit, match="--device gpu: torch knows no such device"):
        run(photos, "x", "--device", "gpu")


def test_a_folder_that_cannot_be_written_is_told_before_a_model_is_loaded(
    photos, no_models, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests' user may be root
    with pytest.raises(SystemExit, match=f"--instance_data_dir {photos}: .* cannot be written"):
        run(photos, "x")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("../x.png", 'a0.png: mask "../x.png" lies outside the folder; move it inside'),
        ("/x.png", 'mask "/x.png" lies outside the folder'),
        (5, 'metadata.jsonl:2: "mask_path" must be a non-empty text'),
        ("a0.png", "its mask a0.png is another photo's"),
    ],
)
def test_a_mask_must_have_a_place_of_its_own_in_the_folder(photos, no_models, path, told):
    line = {"id": "a", "file_name": "a0.png", "mask_path": path, "text": "t"}
    save_lines(photos, {"id": {"a": "x"}}, line)
    with pytest.raises(SystemExit, match=told):
        run(photos, "x")


@pytest.mark.parametrize("name", ["mask", "mask_1"])
def test_an_id_that_makes_its_photos_look_like_masks_is_refused(photos, no_models, name):
    with pytest.raises(SystemExit, match=f'id "{name}": files that begin with mask_ are taken'):
        run(photos, "x", "--query", f"{name}=gas mask")


@pytest.mark.parametrize(
    ("header", "names", "told"),
    [
        (None, [], "metadata.jsonl has no name for a, b; give --names"),
        ({"a": "olis robot"}, [], "metadata.jsonl has no name for b; give --names"),
        ({"a": "olis robot"}, ["b=bear", "a=toy"], '"olis robot" in metadata.jsonl, "toy" in --na'),
        ({"a": "olis robot"}, ["b=bear", "z=toy"], "--names z: no such id; there are a, b"),
        ("a", ["a=toy", "b=bear"], "metadata.jsonl: the first line must name the subjects, as in"),
    ],
)
def test_metadata_that_cannot_be_completed_is_refused(photos, no_models, header, names, told):
    """A header "a" stands for none: the first line is a photo's."""
    if header:
        save_lines(photos, {"id": header, "file_name": "a0.png"})
    with pytest.raises(SystemExit, match=told):
        run(photos, "x", "--write_metadata", *(["--names", *names] if names else []))


def test_an_unreadable_photo_does_not_stop_the_others(photos, detectors):
    (photos / "a0.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"a0.png: the file has zero bytes"):
        run(photos, detectors[1])
    assert len(list(photos.rglob("mask_*.png"))) == 5


def test_completed_metadata_keeps_its_lines(photos, detectors):
    run(photos, detectors[1], *NAMES)
    path = photos / "metadata.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "text": "A olis robot, my words."})
    path.write_text("\n".join(lines) + "\n")
    run(photos, detectors[1], "--write_metadata")
    assert path.read_text().splitlines() == lines


def test_a_query_that_is_too_long_is_told_before_the_first_photo(photos, detectors):
    query = ["--query", "a=" + " ".join("x" * 15), "b=bear"]
    with pytest.raises(SystemExit, match=r'^query "x x .*": 17 tokens, and the detector reads 16'):
        run(photos, detectors[1], query=query)
    assert not list(photos.rglob("mask*"))


def test_metadata_that_lacks_names_masks_and_photos_is_completed(photos, detectors):
    """Captions came first; the file names are those of find(1); b and a2 are not there yet."""
    lines = [{"file_name": f"./a{i}.png", "text": f"A olis robot, {i}."} for i in (0, 1)]
    save_lines(photos, {"id": {"a": "olis robot"}}, *lines)
    run(photos, detectors[1], "--write_metadata", "--names", "b=hta teddy bear")
    subjects = load_subjects(photos)
    assert subjects.names == {"a": "olis robot", "b": "hta teddy bear"}
    assert [(p.image.name, p.mask.name, p.caption) for p in subjects.photos_of("a")] == [
        ("a0.png", "mask_a0.png", "A olis robot, 0."),
        ("a1.png", "mask_a1.png", "A olis robot, 1."),
        ("a2.png", "mask_a2.png", "A photo of a olis robot."),
    ]
    assert len(subjects.photos_of("b")) == 3


def test_the_help_shows_the_command_as_it_is_typed(capsys):
    with pytest.raises(SystemExit):
        generate_masks.parse_args(["--help"])
    assert 'b="dog" \\\n        --sam_checkpoint' in capsys.readouterr().out
