"""The miniature's embedder and detector: no subject in their training, loaded as any others."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image
from safetensors.torch import load_file

from detect_and_compare.embed import load_embedder
from mini.art import SUBJECT_ACCESSORIES, TRAINING_ACCESSORIES, Paint, Thing
from mini.cast import kind_of
from mini.shapes import SHAPES
from mini.subjects import SUBJECTS
from mini.training import detector as train_detector
from mini.training import embedder as train_embedder
from mini.training import instances, redrawn
from mini.training.detector import Example, accuracy, match, naming_loss, set_loss
from mini.training.embedder import Gallery, contrastive_loss, jittered, retrieval
from mini.training.instances import (
    HELD_OUT,
    TRAINING,
    Badge,
    Instance,
    draw_instance,
    family,
    halfway,
    soften,
)
from mini.world import arrange
from mudi.images import Box
from mudi.masks.segment import Detection, Detector
from tests.training import reset_accelerate

torch.set_num_threads(1)

COMMON = "--num_workers 0 --minutes 5 --mixed_precision no --width 32 --layers 1 --patch 16".split()
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True, scope="module")
def toy_sizes():
    """Measure less than the real commands do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_embedder, "NUM_FAMILIES", 2)
        patch.setattr(train_embedder, "NUM_SUBJECT_SCENES", 1)
        patch.setattr(train_detector, "NUM_COUNTED", 2)
        patch.setattr(train_detector, "WORD_STEPS", 3)
        yield


def train(command, folder: Path, steps: int, *more: str) -> dict[str, torch.Tensor]:
    """Run a training command; return the saved weights."""
    reset_accelerate()
    folders = [f"--output={folder / 'out'}", f"--state_dir={folder / 'state'}"]
    command.main(command.parse_args([*folders, *COMMON, f"--max_steps={steps}", *more]))
    return load_file(folder / "out" / WEIGHTS)


@pytest.fixture(scope="module", params=[train_embedder, train_detector])
def command(request: pytest.FixtureRequest):
    return request.param


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedder")
    train(train_embedder, folder, 2, "--batch_size=10")
    return folder / "out"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    train(train_detector, folder, 2, "--batch_size=10")
    return folder / "out"


def test_a_detector_goes_on_with_the_words_it_knows(tmp_path: Path) -> None:
    """The committed one has fewer words than the world's tokenizer has by now."""
    committed = ROOT / "mini/weights/detector"
    train(train_detector, tmp_path, 1, f"--start_from={committed}", "--batch_size=2")
    read = (json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
            for folder in (committed, tmp_path / "out"))  # fmt: skip
    before, after = read
    assert before == after


def random_pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)


def as_images(pixels: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels]


@pytest.mark.parametrize("draw", [train_embedder.draw_family_views, train_detector.draw_example])
def test_no_subject_and_nothing_that_subjects_wear_is_trained_on(
    draw: Callable[[np.random.Generator], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Instance] = []

    def arrange_and_note(shown, *args, **kwargs):
        drawn.extend(shown)
        return arrange(shown, *args, **kwargs)

    for module in (train_embedder, instances):  # all that is drawn goes through it
        monkeypatch.setattr(module, "arrange", arrange_and_note)
    rng = np.random.default_rng(0)
    while len(drawn) < 600:
        draw(rng)
    things = {instance.thing for instance in drawn}
    worn = {thing.accessory for thing in things if thing.accessory}
    assert worn <= set(TRAINING_ACCESSORIES)
    assert {kind_of(name) for name in worn} >= set(SHAPES)
    assert not things & {subject.thing for subject in SUBJECTS.values()}


def test_held_out_instances_wear_what_only_subjects_do() -> None:
    members = family(np.random.default_rng(0), HELD_OUT)
    assert {member.thing.accessory for member in members} <= set(SUBJECT_ACCESSORIES)
    assert not any(member.badge for member in members)


def test_a_family_are_five_that_could_be_taken_for_each_other() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, recoloured, renamed, redressed, _ = members = family(rng, TRAINING)
        assert len(set(members)) == 5
        assert recoloured.thing.noun == redressed.thing.noun == first.thing.noun
        assert renamed.thing.noun != first.thing.noun
        assert recoloured.thing.paint != first.thing.paint
        assert renamed.thing.paint == redressed.thing.paint == first.thing.paint
        for same in (recoloured, renamed):
            assert same.badge == first.badge
            assert same.thing.accessory == first.thing.accessory


def test_halfway_by_hand() -> None:
    middle = halfway(Paint(350, 0.5, (1, 0, 0)), Paint(20, 1.5, (0, 0, 1)))
    assert middle == Paint(365, 1.0, (0.5, 0, 0.5))  # 15 degrees on from 350


def centre_of_green(tile: np.ndarray) -> tuple[float, float]:
    """Return x and y from the middle of a tile, where it is pure green."""
    rows, columns = np.nonzero((tile[..., 1] > 250) & (tile[..., [0, 2]].sum(-1) < 5))
    return columns.mean() - tile.shape[1] / 2, rows.mean() - tile.shape[0] / 2


def test_a_badge_turns_and_is_mirrored_with_what_carries_it() -> None:
    square = ((0.2, -0.1), (0.4, -0.1), (0.4, 0.1), (0.2, 0.1))  # right of the middle
    badge = Badge(square, fill=(0, 255, 0), edge=(0, 255, 0))
    black_owl = Instance(Thing("owl", Paint(tint=(0, 0, 0))), badge)
    right, up = 0.3 * 40, -0.3 * 40
    for angle, flip, expected in (
        (0, False, (right, 0)),
        (0, True, (-right, 0)),
        (90, False, (0, up)),
    ):
        tile = draw_instance(black_owl, 40, angle, flip)
        assert np.allclose(centre_of_green(tile), expected, atol=1)


def test_softened_pictures_keep_their_shape_and_the_share_counts() -> None:
    pixels = np.full((8, 8, 3), 100, dtype=np.uint8)
    rng = np.random.default_rng(0)
    assert soften(pixels, rng, share=0.0) is pixels
    softened = soften(pixels, rng, share=1.0)
    assert softened.shape == pixels.shape and softened.dtype == np.uint8
    assert not np.array_equal(softened, pixels)


def test_jittered_boxes_stay_in_the_picture() -> None:
    rng = np.random.default_rng(0)
    for box in (Box(0, 0, 64, 64), Box(10, 20, 12, 21), Box(63, 0, 64, 64)):
        for _ in range(200):
            moved = jittered(box, rng)
            assert 0 <= moved.left < moved.right <= 64
            assert 0 <= moved.top < moved.bottom <= 64


def test_contrastive_loss_by_hand() -> None:
    embeddings = torch.tensor([[2.0, 0], [1, 0], [0, 3], [0, 1]])  # lengths don't count
    # each row: its partner at cosine 1, two others at 0
    expected = np.log((np.e + 2) / np.e)
    assert torch.allclose(contrastive_loss(embeddings, 1.0), torch.full((4,), expected).float())


def test_retrieval_by_hand() -> None:
    # instances 0 and 1 are one family, 2 another; crops of 0, 1 and 2
    similarity = np.array([[0.9, 0.1, 0.2], [0.1, 0.5, 0.6], [0.8, 0.7, 0.1]])
    gallery = Gallery([], [], shown=np.array([0, 1, 2]), families=np.array([0, 0, 1]))
    report = retrieval(similarity, gallery)
    assert report["nearest_of_all"] == pytest.approx(1 / 3)
    assert report["nearest_of_family"] == 1


def test_training_goes_on_where_it_stopped(
    command, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    train(command, tmp_path, 1, "--batch_size=10")
    resumed = train(command, tmp_path, 2, "--batch_size=10")
    kind = "embedder" if command is train_embedder else "detector"
    straight = load_file(request.getfixturevalue(kind) / WEIGHTS)
    assert resumed.keys() == straight.keys()
    assert [name for name in resumed if not resumed[name].equal(straight[name])] == []
    assert {weights.dtype for weights in resumed.values()} == {torch.float16}


def test_the_embedder_is_loaded_as_any_dinov2(embedder: Path) -> None:
    """And detect_and_compare pools as training did."""
    pixels = random_pictures(3)
    loaded = load_embedder(str(embedder))
    vectors = loaded(as_images(pixels))
    assert vectors.shape == (3, 32)

    model = train_embedder.Dinov2Model.from_pretrained(embedder).eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        trained = train_embedder.embed(model, train_embedder.new_processor(), pixels)
    assert np.allclose(vectors, trained.numpy(), atol=1e-5)


def test_the_detector_is_loaded_as_any_owlv2(detector: Path) -> None:
    found = Detector(str(detector))(as_images(random_pictures(2)), [["fox", "owl"]] * 2, 0.0)
    assert [len(detections) for detections in found] == [16, 16]  # a patch each
    assert {detection.query for detections in found for detection in detections} <= {0, 1}


def test_training_asks_as_the_models_forward_does(detector: Path) -> None:
    model = train_detector.Owlv2ForObjectDetection.from_pretrained(detector).eval()
    processor = train_detector.Owlv2Processor.from_pretrained(detector)
    pixels, queries = random_pictures(2), ["a photo of a fox", "teddy bear"]
    inputs = processor(text=[queries] * 2, images=as_images(pixels), return_tensors="pt")
    with torch.no_grad():
        whole = model(**inputs)
        logits, boxes, cosines = train_detector.predict(model, processor, pixels, queries)
    assert torch.allclose(logits, whole.logits, atol=1e-4)
    assert torch.allclose(boxes, whole.pred_boxes, atol=1e-5)
    assert cosines.shape == logits.shape and cosines.abs().max() <= 1 + 1e-6


def test_words_come_first_and_stay() -> None:
    processor = train_detector.new_processor()
    torch.manual_seed(0)
    model = train_detector.new_detector(processor, 32, 1, 16)

    def likeness() -> float:
        """Return the mean cosine between different names."""
        with torch.no_grad():
            names = train_detector.embed_queries(model, processor, list(train_detector.NOUNS))
        names = torch.nn.functional.normalize(names, dim=1)
        return ((names @ names.T).sum().item() - len(names)) / len(names) / (len(names) - 1)

    before = likeness()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_detector, "WORD_STEPS", 30)
        train_detector.teach_words(model, processor, np.random.default_rng(0))
    assert likeness() < before - 0.5


def example_of(boxes: list[list[float]], nouns: list[int]) -> Example:
    """Return an example of which only boxes and nouns matter."""
    nothing = np.full((64, 64), train_detector.NOTHING)
    pixels = np.zeros((64, 64, 3), np.uint8)
    return Example(pixels, np.array(boxes, np.float32), np.array(nouns), nothing)


HERE, THERE = [0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]  # centre x, y, width, height


def test_match_by_hand() -> None:
    """Patches lie at HERE's centre, right of it, below it, and at THERE's centre."""
    boxes = torch.tensor([HERE, HERE, HERE, THERE])
    unsure, sure = [-3.0, -3.0], [-3.0, 3.0]
    wanted, noun = torch.tensor([HERE]), torch.tensor([1])

    patches, things = match(torch.tensor([unsure] * 4), boxes, wanted, noun)
    assert (patches.tolist(), things.tolist()) == ([0], [0])  # at the place
    logits = torch.tensor([unsure, unsure, sure, sure])
    assert match(logits, boxes, wanted, noun)[0].tolist() == [2]  # a patch off, but surer
    logits = torch.tensor([unsure, [-3.0, -2.0], unsure, sure])
    assert match(logits, boxes, wanted, noun)[0].tolist() == [0]  # not so much surer

    both = torch.tensor([THERE, HERE]), torch.tensor([0, 1])
    patches, things = match(torch.tensor([unsure] * 4), boxes, *both)
    assert dict(zip(things.tolist(), patches.tolist(), strict=True)) == {0: 3, 1: 0}


def test_a_second_patch_for_the_same_thing_costs() -> None:
    batch = train_detector.collate([example_of([HERE], [1])])
    boxes = torch.tensor([[HERE, HERE, THERE, THERE]])
    no, yes = [-9.0, -9.0], [-9.0, 9.0]
    one, two = torch.tensor([[yes, no, no, no]]), torch.tensor([[yes, yes, no, no]])
    assert set_loss(one, boxes, batch).item() == pytest.approx(0, abs=1e-5)
    # focal loss of a no answered yes: 0.5 * 9 * sigmoid(9)^2, times the class weight
    expected = train_detector.CLASS_WEIGHT * 0.5 * 9
    assert set_loss(two, boxes, batch).item() == pytest.approx(expected, rel=1e-3)


def test_naming_loss_by_hand() -> None:
    shown = torch.full((1, 4, 4), train_detector.NOTHING)
    shown[0, :2, :2] = 1  # the first of four patches; the others' answers don't count
    cosines = torch.tensor([[[1.0, 0], [0, 1], [1, 0], [0, 0]]])
    expected = np.log1p(np.exp(train_detector.FIRST_SCALE))
    assert naming_loss(cosines, shown).item() == pytest.approx(expected, rel=1e-5)
    assert naming_loss(cosines, torch.full_like(shown, train_detector.NOTHING)).item() == 0


def test_examples_show_what_their_boxes_say() -> None:
    rng = np.random.default_rng(0)
    for count in range(1, 6):
        example = train_detector.draw_counted(count, TRAINING, rng)
        assert len(example.boxes) == len(example.nouns) == count
        assert set(np.unique(example.shown)) == {train_detector.NOTHING, *example.nouns}
        if len(set(example.nouns)) == count:
            for box, noun in zip(example.boxes, example.nouns, strict=True):
                rows, columns = np.nonzero(example.shown == noun)
                corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                middle = [(corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2]
                sides = [corners[2] - corners[0], corners[3] - corners[1]]
                assert np.allclose(box * 64, [*middle, *sides])


def test_accuracy_by_hand() -> None:
    example = example_of([HERE, THERE], [0, 1])
    whole, half = Box(0, 0, 32, 32), Box(32, 32, 48, 64)
    right = [Detection(whole, 0.9, 0), Detection(half, 0.8, 1)]
    assert accuracy([example], [right]) == {"right": 1, "iou": 0.75}
    extra = [*right, Detection(Box(0, 40, 10, 50), 0.5, 0)]
    assert accuracy([example], [extra]) == {"right": 0, "iou": 0.75}
    assert accuracy([example, example], [[], right]) == {"right": 0.5, "iou": 0.375}


@pytest.mark.parametrize("flag", ["--width=33", "--patch=7", "--patch=0"])
def test_sizes_that_do_not_fit_are_refused(command, flag: str) -> None:
    with pytest.raises(SystemExit, match=flag.partition("=")[0]):
        command.main(command.parse_args(["--output=x", flag]))
    with pytest.raises(SystemExit, match="--batch_size 16: must be a multiple"):
        train_embedder.main(train_embedder.parse_args(["--output=x", "--batch_size=16"]))


# What the base redraws


def test_redrawn_scenes_keep_their_boxes_and_are_what_the_detector_takes(tmp_path: Path) -> None:
    """Stopped after one shard, the command draws the other; each example is as the world's is."""
    folder = tmp_path / "redrawn"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redrawn, "SHARD", 2)
        patch.setattr(redrawn, "STEPS", 4)
        redrawn.main(redrawn.parse_args([f"--output={folder}", "--count=2"]))
        first = next(folder.glob("*.safetensors"))
        made = first.stat().st_mtime_ns
        redrawn.main(redrawn.parse_args([f"--output={folder}", "--count=4"]))
        assert first.stat().st_mtime_ns == made
        with pytest.raises(SystemExit, match="--count 3: must be a multiple of 2"):
            redrawn.main(redrawn.parse_args([f"--output={folder}", "--count=3"]))
        with pytest.raises(SystemExit, match="holds pictures of"):
            redrawn.main(redrawn.parse_args([f"--output={folder}", "--count=4", "--seed=1"]))
    pool = redrawn.Redrawn(folder)
    assert len(pool) == 4
    sides = set()
    for seed in range(20):
        example = pool.draw(np.random.default_rng(seed))
        assert example.pixels.shape == (64, 64, 3) and len(example.boxes) == len(example.nouns) > 0
        for (x, y, _, _), noun in zip(example.boxes * 64, example.nouns, strict=True):
            near = example.shown[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8]
            assert noun in near  # also in a mirrored picture
        sides.add(example.boxes[0, 0])
    assert len(sides) > 4  # mirrored ones among them
    train(train_detector, tmp_path, 1, f"--redrawn={folder}", "--batch_size=4")
    with pytest.raises(SystemExit, match="no redrawn pictures"):
        train(train_detector, tmp_path, 2, f"--redrawn={tmp_path / 'nowhere'}")
