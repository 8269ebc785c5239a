"""generate_masks.py from a bare folder of photos to one that training accepts, on tiny models."""

import json

import numpy as np
import pytest
import torch
from helpers import ROOT, DataFolder
from notebooks import count_pictures, execute, text_of
from PIL import Image

import generate_masks
from mini.tiny import save_tiny_owlv2, save_tiny_sam
from mudi import segment
from mudi.images import Box, load_mask, tight_box
from mudi.metadata import load_subjects

torch.set_num_threads(1)
QUERY = ["--query", "a=robot", "b=teddy bear"]
NAMES = ["--write_metadata", "--names", "a=olis robot", "b=hta teddy bear"]


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """One that always finds one box, the picture; one that finds several."""
    folder = tmp_path_factory.mktemp("owlv2")
    return {n: str(save_tiny_owlv2(folder / str(n), grid=n)) for n in (1, 2)}


def draw_photo(path, box, size=(96, 64), exif=None):
    """A photo of a red subject that fills box, on a plain grey background."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (120, 120, 120))
    image.paste((220, 30, 30), box)
    image.save(path, **({"exif": exif} if exif else {}))


@pytest.fixture
def photos(tmp_path):
    """Three photos a subject, by name and by sub-folder."""
    for i in range(3):
        draw_photo(tmp_path / f"a{i}.png", (20 + i, 10, 60, 50))
        draw_photo(tmp_path / "b" / f"{i}.png", (30 + i, 20, 50, 40), size=(64, 96))
    return tmp_path


def run(folder, detector, *words, threshold="0.0", segmenter="foreground"):
    argv = ["--instance_data_dir", str(folder), *QUERY, "--detector", detector]
    argv += ["--threshold", threshold, "--segmenter", segmenter, "--device", "cpu", *words]
    generate_masks.main(generate_masks.parse_args(argv))


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


def test_points_choose_the_piece_that_they_lie_on(photos, detectors):
    image = Image.open(photos / "a0.png")
    image.paste((30, 30, 220), (70, 5, 75, 10))
    image.save(photos / "a0.png")
    run(photos, detectors[1], "--point", "a0.png=72,7")
    assert load_mask(photos / "mask_a0.png").sum() == 5 * 5


def test_existing_masks_are_kept_unless_overwritten(photos, detectors):
    own = Image.new("L", (96, 64), 0)
    own.paste(255, (0, 0, 48, 32))
    own.save(photos / "mask_a0.png")
    run(photos, detectors[1])
    assert load_mask(photos / "mask_a0.png").sum() == 48 * 32
    run(photos, detectors[1], "--overwrite")
    assert load_mask(photos / "mask_a0.png").sum() == 40 * 40


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


def test_a_photo_turned_by_exif_gets_an_upright_mask(tmp_path, detectors):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    for i, name in enumerate(["a0.jpg", "a1.jpg", "b0.jpg", "b1.jpg"]):
        draw_photo(tmp_path / name, (20 + i, 10, 60, 50), exif=exif)
    run(tmp_path, detectors[1], *NAMES)
    assert load_mask(tmp_path / "mask_a0.png").shape == (96, 64)
    load_subjects(tmp_path)


def test_sam_makes_masks_of_the_photos_own_size(photos, detectors, tmp_path):
    kind = save_tiny_sam(tmp_path / "sam.pth")
    segmenter = segment.SamSegmenter(tmp_path / "sam.pth", kind)
    image = Image.open(photos / "a0.png").convert("RGB")
    mask = segmenter(image, Box(20, 10, 60, 50))
    assert (mask.shape, mask.dtype) == ((64, 96), np.dtype(bool))
    assert np.array_equal(mask, segmenter(image, Box(20, 10, 60, 50)))
    assert segmenter(image, None, [(40, 30)]).shape == (64, 96)
    sam = ["--sam_checkpoint", str(tmp_path / "sam.pth"), "--sam_type", kind]
    argv = ["--instance_data_dir", str(photos), *QUERY, "--detector", detectors[1], *sam]
    args = generate_masks.parse_args([*argv, "--threshold", "0", "--device", "cpu"])
    try:
        generate_masks.main(args)
    except SystemExit as stopped:  # a random SAM may find all or nothing: then it is told
        assert "the mask covers" in str(stopped)
    assert (photos / "masks_sheet.png").is_file()


def save_sam_that_sees_brightness(path):
    """A SAM whose mask is what is brighter than the mean colour, at 16 px of its 256.

    Channels 0 and 1 carry +brightness and -brightness; every norm turns them into +1 and -1.
    """
    kind = save_tiny_sam(path)
    weights = {name: torch.zeros_like(w) for name, w in torch.load(path).items()}
    patch = weights["image_encoder.patch_embed.proj.weight"]
    patch[0], patch[1] = 1.0, -1.0
    upscaling = "mask_decoder.output_upscaling"
    for channel in (0, 1):
        weights["image_encoder.neck.0.weight"][channel, channel] = 1.0
        weights["image_encoder.neck.2.weight"][channel, channel, 1, 1] = 1.0
        weights[f"{upscaling}.0.weight"][channel, channel] = 1.0
        weights[f"{upscaling}.3.weight"][channel, channel] = 1.0
    norms = "image_encoder.neck.1", "image_encoder.neck.3", f"{upscaling}.1"
    for norm in (*norms, "mask_decoder.transformer.layers.0.norm4"):
        weights[f"{norm}.weight"] += 1.0
    weights["mask_decoder.output_hypernetworks_mlps.0.layers.2.bias"][:2] = torch.tensor([1.0, -1])
    torch.save(weights, path)
    return kind


@pytest.mark.parametrize("size", [(512, 352), (352, 512)])
def test_sams_mask_and_box_have_the_scale_of_a_photo_that_is_not_square(tmp_path, size):
    """The longer side becomes 256 px: the white rectangle lies on patches, its edges are known."""
    kind = save_sam_that_sees_brightness(tmp_path / "sam.pth")
    segmenter = segment.SamSegmenter(tmp_path / "sam.pth", kind)
    box = Box(64, 32, 224, 160)
    photo = Image.new("RGB", size, "black")
    photo.paste("white", box)
    asked = []
    encoder = segmenter._predictor.model.prompt_encoder
    encoder.register_forward_hook(lambda *call: asked.append(call[2]["boxes"]), with_kwargs=True)
    mask = segmenter(photo, box)
    assert tight_box(mask) == box
    assert mask.sum() > 0.998 * box.width * box.height  # interpolation rounds the corners
    assert asked[0].flatten().tolist() == [32, 16, 112, 80]


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
    )
    assert 'a0.png: 2 boxes for "robot"' in text_of(notebook)
    assert "metadata.jsonl is ready" in text_of(notebook)
    assert count_pictures(notebook) == 2
    assert len(load_subjects(photos).photos) == 6


def test_what_cannot_be_loaded_is_one_line(photos, detectors, tmp_path):
    with pytest.raises(SystemExit, match=r"SAM checkpoint nowhere.pth: no such file; download"):
        run(photos, detectors[1], "--sam_checkpoint", "nowhere.pth", segmenter="sam")
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    with pytest.raises(SystemExit, match=r"broken.pth: no vit_b"):
        broken = ["--sam_checkpoint", str(tmp_path / "broken.pth"), "--sam_type", "vit_b"]
        run(photos, detectors[1], *broken, segmenter="sam")
    with pytest.raises(SystemExit, match="detector /nowhere: cannot be loaded"):
        run(photos, "/nowhere")


def test_bad_input_is_told_together_before_a_model_is_loaded(photos, monkeypatch):
    monkeypatch.setattr(segment, "Detector", lambda *_: pytest.fail("a model was loaded"))
    draw_photo(photos / "zebra.png", (20, 10, 60, 50))
    draw_photo(photos / "a0.webp", (20, 10, 60, 50))
    (photos / "metadata.jsonl").write_text('{"id": {"a": "x"}}\n{broken\n')
    with pytest.raises(SystemExit) as stopped:
        run(photos, "x", "--box", "a1.png=1,2,3", "--point", "nosuch.png=1,2")
    told = str(stopped.value)
    for text in (
        "zebra.png: belongs to none of a, b", "--box a1.png=1,2,3: write it as FILE=x,y,x,y",
        "no photo nosuch.png", "metadata.jsonl:2: broken JSON", "is another photo's",
    ):  # fmt: skip
        assert text in told
    (photos / "metadata.jsonl").unlink()
    with pytest.raises(SystemExit, match="--write_metadata needs --names for a, b"):
        run(photos, "x", "--write_metadata")


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
