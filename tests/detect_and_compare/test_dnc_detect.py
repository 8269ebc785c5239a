"""Detection and references: boxes, crops, colours, folders. Boxes are computed by hand."""

import re

import numpy as np
import pytest
import torch
from helpers import DataFolder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    GroundingDinoConfig,
    Owlv2ForObjectDetection,
    Owlv2Processor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
)

from detect_and_compare import default_query, load_detector, load_references, score_images
from detect_and_compare.detect import (
    ForegroundDetector,
    OwlDetector,
    square_crop,
    without_overlaps,
)
from detect_and_compare.histogram import ColourHistogram
from detect_and_compare.references import ReferencesError, cut
from mini.tiny import save_tiny_owlv2
from mudi.images import Box
from mudi.masks.segment import Detection, SegmentError

torch.set_num_threads(1)
RED, BLUE, GREY = (220, 30, 30), (40, 60, 220), (120, 120, 120)


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory):
    """Finds boxes of half the padded square's side, centred on its middle, edges and corner."""
    return save_tiny_owlv2(tmp_path_factory.mktemp("owlv2"), grid=2)


def drawn(*boxes, size=(96, 64), background=GREY):
    """A picture with red boxes on a plain background."""
    image = Image.new("RGB", size, background)
    for box in boxes:
        image.paste(RED, box)
    return image


def test_owlv2_boxes_on_a_3_to_2_picture_are_in_its_own_pixels(owlv2):
    """The padded square has 96 px: (24, 24, 72, 72) and (72, 24, 120, 72), cut to 96 x 64."""
    detect = OwlDetector(str(owlv2), ["toy", "toy", "dog"], threshold=0.0)
    wide, high = detect([drawn(), drawn(size=(64, 96))])
    assert detect.queries == ["toy", "dog"]
    assert re.fullmatch(re.escape(str(owlv2)) + "@[0-9a-f]{8}", detect.name)  # and its weights
    corners = sorted(tuple(detection.box) for detection in wide)
    assert np.allclose(corners, [(24, 24, 72, 64), (72, 24, 96, 64)], atol=1)
    corners = sorted(tuple(detection.box) for detection in high)
    assert np.allclose(corners, [(24, 24, 64, 72), (24, 72, 64, 96)], atol=1)


def test_nms_drops_what_overlaps_a_better_box_whatever_it_answers():
    """The lower half of a box has an intersection over union of 1/2 with it."""
    whole = Detection(Box(0, 0, 10, 10), 0.9, query=0)
    half = Detection(Box(0, 5, 10, 10), 0.8, query=1)
    apart = Detection(Box(20, 0, 30, 10), 0.7, query=0)
    assert without_overlaps([half, apart, whole], 0.4) == [whole, apart]
    assert without_overlaps([half, apart, whole], 0.6) == [whole, half, apart]
    assert without_overlaps([], 0.5) == []


def test_nms_is_off_unless_asked_for(owlv2, tmp_path):
    model = Owlv2ForObjectDetection.from_pretrained(owlv2)
    model.box_head.dense2.bias.data[2:] = 9.0  # every box is as large as the padded square
    for file in owlv2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path)
    found = {}
    for nms in (None, 0.1):
        [found[nms]] = load_detector(str(tmp_path), ["toy"], threshold=0.0, nms=nms)([drawn()])
    assert len(found[None]) == 4
    assert found[0.1] == found[None][:1]


def test_a_detector_that_cannot_be_had_is_told_in_one_line():
    with pytest.raises(SegmentError, match="detector /nowhere: cannot be loaded") as error:
        load_detector("/nowhere", ["toy"])
    assert "\n" not in str(error.value)


def test_an_owl_vit_is_asked_in_the_same_way(owlv2, tmp_path):
    """Random weights: 2 x 2 patches propose four boxes, all with some confidence."""
    owl = Owlv2ForObjectDetection.from_pretrained(owlv2).config
    text, vision = owl.text_config.to_dict(), owl.vision_config.to_dict()
    config = OwlViTConfig(text_config=text, vision_config=vision, projection_dim=32)
    OwlViTForObjectDetection(config).save_pretrained(tmp_path)
    images = OwlViTImageProcessor(size={"height": 32, "width": 32})
    tokenizer = Owlv2Processor.from_pretrained(owlv2).tokenizer
    OwlViTProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(tmp_path)
    [found] = load_detector(str(tmp_path), ["toy"], threshold=0.0)([drawn(size=(960, 640))])
    assert 1 <= len(found) <= 4


def test_detectors_of_other_kinds_are_refused_in_one_line(tmp_path):
    GroundingDinoConfig().save_pretrained(tmp_path)
    with pytest.raises(SegmentError, match=r": a grounding-dino; OWLv2 or OWL-ViT is wanted$"):
        load_detector(str(tmp_path), ["toy"])


def test_a_query_with_more_tokens_than_the_network_reads_is_refused(owlv2):
    """Each x is a token, and so are the text's beginning and end."""
    longest = " ".join("x" * 14)
    assert len(load_detector(str(owlv2), ["toy", longest], threshold=0.0)([drawn()])) == 1
    with pytest.raises(SegmentError, match=f'^query "{longest} x": 17 tokens.* reads 16;'):
        load_detector(str(owlv2), ["toy", f"{longest} x"])


def test_foreground_pieces_are_boxed_exactly_and_specks_left_out():
    """13 x 24 px and 20 x 21 px; a speck of 3 x 3 is below 0.2 % of 96 x 64."""
    image = drawn((5, 10, 18, 34), (50, 20, 70, 41), (80, 5, 83, 8))
    [found] = ForegroundDetector()([image])
    assert [detection.box for detection in found] == [Box(5, 10, 18, 34), Box(50, 20, 70, 41)]
    assert ForegroundDetector()([drawn()]) == [[]]


def test_pieces_of_one_subject_that_hardly_part_are_one():
    """At 960 px, gaps of up to 7 px are bridged."""
    near = drawn((100, 100, 200, 200), (207, 100, 300, 200), size=(960, 640))
    far = drawn((100, 100, 200, 200), (220, 100, 300, 200), size=(960, 640))
    detect = ForegroundDetector()
    assert [d.box for d in detect([near])[0]] == [Box(100, 100, 300, 200)]
    assert len(detect([far])[0]) == 2


def test_crops_are_centred_on_white_squares():
    crop = np.asarray(square_crop(drawn((10, 20, 50, 40)), Box(10, 20, 50, 40)))
    assert crop.shape == (40, 40, 3)
    assert (crop[10:30] == RED).all()
    assert (crop[:10] == 255).all() and (crop[30:] == 255).all()


def test_crops_are_rounded_to_the_nearest_pixel_and_black_beyond_the_picture():
    """4.4 to 19.6 is 4 to 20; -8.6 to 7.4 is -9 to 7: 16 x 16, nine rows of them beyond."""
    image = Image.fromarray(np.arange(96 * 64 * 3).reshape(64, 96, 3).astype(np.uint8) | 1)
    crop = np.asarray(square_crop(image, (4.4, -8.6, 19.6, 7.4)))
    assert crop.shape == (16, 16, 3)
    assert (crop[:9] == 0).all()
    np.testing.assert_array_equal(crop[9:], np.asarray(image)[:7, 4:20])
    sliver = np.asarray(square_crop(image, (10.6, 2.0, 11.4, 4.0)))
    np.testing.assert_array_equal(sliver, np.asarray(image)[2:4, 10:12])


@given(st.floats(-40, 90), st.floats(-40, 60), st.floats(2, 60), st.floats(2, 60))
def test_a_crop_is_what_pillow_cuts_at_those_corners(left, top, width, height):
    image = drawn((0, 0, 96, 64))
    corners = [round(corner, 2) for corner in (left, top, left + width, top + height)]
    cut_out = image.crop(tuple(corners))  # rounds as well
    square = square_crop(image, corners)
    assert square.size == (max(cut_out.size),) * 2
    black, red = ((np.asarray(p) == c).all(2).sum() for p, c in ((square, 0), (square, RED)))
    pixels = np.asarray(cut_out)
    assert (black, red) == ((pixels == 0).all(2).sum(), (pixels == RED).all(2).sum())


def test_the_metric_embeds_what_lies_beyond_the_picture_as_black(owlv2):
    """On 96 x 64, a box of (72, 24, 120, 72) has 24 x 40 px in the picture; all of it is red."""
    picture = drawn((0, 0, 96, 64))
    seen: list[np.ndarray] = []

    class Watcher:
        name = "watcher"

        def __call__(self, images):
            seen.extend(np.asarray(image) for image in images)
            return np.ones((len(images), 2), dtype=np.float32)

    detector = load_detector(str(owlv2), ["toy"], threshold=0.0)
    [record] = score_images([picture], {"a": [picture], "b": [picture]}, detector, Watcher())
    crops = {box: crop for box, crop in zip(record.boxes, seen[2:], strict=True)}
    corner = crops[max(record.boxes)]
    assert corner.shape == (48, 48, 3)
    assert (corner == RED).all(2).sum() == 24 * 40
    assert (corner == 0).all(2).sum() == 48 * 48 - 24 * 40


def test_colours_are_compared_without_their_white_padding():
    embed = ColourHistogram()
    red, framed, blue, white, black = embed([
        Image.new("RGB", (40, 40), RED),
        drawn((30, 10, 60, 50), background="white"),
        Image.new("RGB", (10, 30), BLUE),
        Image.new("RGB", (9, 9), "white"),
        Image.new("RGB", (9, 9), "black"),
    ])  # fmt: skip
    assert np.isclose(np.linalg.norm(red), 1)
    assert red @ framed > 0.999
    assert red @ blue < 0.5
    assert white @ black < 0.5


def test_references_of_a_metadata_folder_are_whole_or_cut_out(folder: DataFolder):
    """Its subjects fill the middle quarter of 64 x 48: 32 x 24, on a square of 32."""
    whole, cropped = load_references(folder.path), load_references(folder.path, crop=True)
    assert whole.names == {"a": "olis robot", "b": "hta teddy bear"}
    assert [image.size for image in whole.images["b"]] == [(64, 48)] * 3
    pixels = np.asarray(cropped.images["b"][0])
    assert pixels.shape == (32, 32, 3)
    assert (pixels[:4] == 255).all() and (pixels[28:] == 255).all() and (pixels[4:28] < 255).any()
    assert whole.digest == load_references(folder.path).digest != cropped.digest


def test_what_the_mask_leaves_out_is_white():
    mask = np.zeros((64, 96), dtype=bool)
    mask[10:20, 30:40] = mask[10:30, 30:35] = True
    pixels = np.asarray(cut(drawn((0, 0, 96, 64)), mask))
    assert pixels.shape == (20, 20, 3)  # 10 wide, centred
    assert (pixels == RED).all(axis=2).sum() == mask.sum()
    assert ((pixels == RED) | (pixels == 255)).all()


def test_references_of_sub_folders_are_named_after_them(tmp_path):
    for name in ("robot_toy/1.png", "robot_toy/0.jpg", "dog/x/deep.png", ".hidden/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        drawn().save(tmp_path / name)
    drawn().save(tmp_path / "dog" / "mask_deep.png")
    references = load_references(tmp_path)
    assert references.names == {"dog": "dog", "robot_toy": "robot toy"}
    assert [len(images) for images in references.images.values()] == [1, 2]
    with pytest.raises(ReferencesError, match=r"no metadata.jsonl, so there are no masks"):
        load_references(tmp_path, crop=True)


def test_folders_that_hold_no_references_are_refused(tmp_path):
    with pytest.raises(ReferencesError, match="no such folder"):
        load_references(tmp_path / "nowhere")
    with pytest.raises(ReferencesError, match=r"neither metadata.jsonl nor a sub-folder"):
        load_references(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ReferencesError, match="dog: no pictures"):
        load_references(tmp_path)
    (tmp_path / "dog" / "0.png").touch()
    with pytest.raises(ReferencesError, match=r"0.png: the file has zero bytes"):
        load_references(tmp_path)


def test_the_rare_token_is_not_looked_for():
    assert default_query("olis robot") == "robot"
    assert default_query("hta teddy bear") == "teddy bear"
    assert default_query("corgi") == "corgi"
