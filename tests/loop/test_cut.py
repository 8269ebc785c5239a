"""Picked pictures become a data folder."""

import json
from pathlib import Path

import numpy as np
from looping import NAMES, PROMPTS, good_picture, write_loop
from PIL import Image

from mini.tiny import save_sam_that_sees_brightness
from mudi.images import Box, load_mask
from mudi.loop import cut
from mudi.loop.cut import cut_subjects
from mudi.masks.segment import foreground_segmenter
from mudi.metadata import load_subjects


def test_a_subject_is_cut_out_and_two_that_can_t_be_told_apart_are_not():
    image = good_picture(PROMPTS[0], 0)
    pixels = np.asarray(image)
    masks = {s: (pixels == c).all(axis=2) for s, c in (("a", (200, 40, 40)), ("b", (50, 70, 220)))}
    boxes = {}
    for subject, mask in masks.items():
        ys, xs = np.nonzero(mask)
        boxes[subject] = Box(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    found = cut_subjects(image, boxes, foreground_segmenter)
    assert all((found[subject] == mask).all() for subject, mask in masks.items())
    touching = Image.new("RGB", (64, 64), "white")
    touching.paste((200, 40, 40), (2, 20, 30, 40))
    touching.paste((50, 70, 220), (30, 20, 60, 40))
    boxes = {
        "a": Box(2, 20, 32, 40),
        "b": Box(30, 20, 60, 40),
    }  # widened by 4
    red, blue = cut_subjects(touching, boxes, foreground_segmenter).values()
    assert red is not None and blue is not None and not (red & blue).any()
    assert (red.sum(), blue.sum()) == (24 * 20, 24 * 20)  # columns 2 to 25 and 36 to 59
    same = Box(2, 20, 60, 40)  # as if both had been found there
    assert cut_subjects(touching, {"a": same, "b": same}, foreground_segmenter) == {
        "a": None, "b": None,
    }  # fmt: skip


def test_sam_cuts_out_of_a_picked_picture_what_the_detector_s_boxes_hold(tmp_path: Path, capsys):
    """Boxes that are a little off; what is not picked is no scene; a bare box is told of."""
    write_loop(tmp_path, tmp_path)
    sam = ["--sam_checkpoint", str(tmp_path / "sam.pth")]
    sam += ["--sam_type", save_sam_that_sees_brightness(tmp_path / "sam.pth")]
    squares = {"a": Box(4, 12, 28, 36), "b": Box(36, 20, 60, 48)}  # on SAM's patches, 4 px here
    picture = Image.new("RGB", (64, 64), "black")
    for square in squares.values():
        picture.paste("white", square)
    (tmp_path / "pictures").mkdir()
    for name in ("0.png", "1.png", "2.png"):
        picture.save(tmp_path / "pictures" / name)
    off = {"a": (5, 11, 29, 35), "b": (35, 21, 61, 48)}
    bare = {"a": (0, 48, 20, 64), "b": off["b"]}
    picks = [
        {"image": "0.png", "fate": "picked", "boxes": off},
        {"image": "1.png", "fate": "mixed", "boxes": off},
        {"image": "2.png", "fate": "picked", "boxes": bare},
    ]
    lines = [json.dumps({**pick, "prompt": PROMPTS[0], "named": list(NAMES)}) for pick in picks]
    (tmp_path / "picks.jsonl").write_text("\n".join(lines) + "\n")
    places = {"picks": "picks.jsonl", "images": "pictures", "instance_data_dir": "data"}
    flags = [f"--{key}={tmp_path / name}" for key, name in (places | {"output_dir": "new"}).items()]
    cut.main(cut.parse_args([*flags, "--segmenter", "sam", *sam]))
    one, two = load_subjects(tmp_path / "new").scenes
    assert [scene.image.name for scene in (one, two)] == ["0.png", "2.png"]
    for made in one.cuts:
        mask = Image.new("1", (64, 64))
        mask.paste(1, squares[made.subject])
        assert (load_mask(made.mask) == np.asarray(mask)).all()
    assert [made.subject for made in two.cuts] == ["b"]
    assert "2.png: a could not be cut out" in capsys.readouterr().out
