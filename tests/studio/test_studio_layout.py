"""What the layout tab draws follows from the files as they are; its command draws the same."""

import numpy as np
import pytest
from helpers import noise, rectangle
from PIL import Image

from mudi.studio.__main__ import parse_args
from mudi.studio.drawing import Easel
from mudi.studio.folder import PhotoFolder
from mudi.studio.layout import Stages
from mudi.studio.server import Asked

OTHER = np.zeros((48, 64), bool)  # a mask that is not `rectangle`
OTHER[2:10, 2:60] = True


def wish_of(photo="a0.jpg", **more):
    """What the page sends of a picture of the first subject."""
    boxes = {"olis robot": [0.05, 0.1, 0.85, 0.95]}
    layout = {"boxes": boxes, "front_to_back": list(boxes), "photos": {"olis robot": photo}}
    shot = {"prompt": "a photo of a olis robot", "seed": 3, "gamma": {"a": 1.5}}
    return Asked({**shot, "width": 64, "height": 64, "layout": layout, **more})


def start_of(stages, asked):
    wish = stages.wish(asked)
    return np.asarray(wish.stage.start(wish.shot).scene.image)


def drawn(easel, wish):
    """Draw a wish here and now; return the start that is shown, and the picture."""
    picture = easel.begin(wish)
    with easel._busy:  # held until it is drawn
        assert picture.problem is None
    return np.asarray(picture.start), np.asarray(picture.image)


@pytest.fixture
def args(folder, sdxl_backbone):
    base = str(sdxl_backbone.base)
    return parse_args([str(folder.path), "--pretrained_model_name_or_path", base, "--steps", "2"])


def test_a_mended_mask_is_drawn(folder, args):
    photos = PhotoFolder(folder.path)
    stages, easel = Stages(photos), Easel(args)
    start, picture = drawn(easel, stages.wish(wish_of()))
    assert np.array_equal(drawn(easel, stages.wish(wish_of()))[1], picture)
    photos.save_mask("a0.jpg", OTHER, photos.version("a0.jpg"), {})
    new_start, new_picture = drawn(easel, stages.wish(wish_of()))
    assert not np.array_equal(new_start, start) and not np.array_equal(new_picture, picture)
    fresh = drawn(Easel(args), Stages(photos).wish(wish_of()))
    assert np.array_equal(new_start, fresh[0]) and np.array_equal(new_picture, fresh[1])


def test_a_scenes_mended_mask_is_seen(folder):
    noise(seed=77).save(folder.path / "both.png")
    rectangle().save(folder.path / "cut_a.png")
    cuts = [{"id": "a", "mask_path": "cut_a.png"}]
    folder.lines.append({"file_name": "both.png", "text": "a olis robot", "subjects": cuts})
    folder.save()
    stages, asked = Stages(PhotoFolder(folder.path)), wish_of("both.png")
    before = start_of(stages, asked)
    Image.fromarray(OTHER).save(folder.path / "cut_a.png")
    after = start_of(stages, asked)
    assert not np.array_equal(after, before)
    assert np.array_equal(after, start_of(Stages(PhotoFolder(folder.path)), asked))
