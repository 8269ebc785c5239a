"""The page as a user has it, in a real Chromium: every tab, saved files, a server that dies."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest
from endpoint import completion
from helpers import NAMES, ROOT, DataFolder, noise
from pages import Hand, copy_examples, served
from PIL import Image

import train_segmix_lora_flux
from mini.tiny import save_sam_that_sees_brightness
from mudi import preview
from mudi.data import DrawSchedule, SampleOptions, SegMixDataset
from mudi.ground.sheets import contact_sheet
from mudi.images import Box, load_mask, load_rgb, tight_box
from mudi.layouts import load_layout, parse_layout
from mudi.metadata import load_subjects
from mudi.pictures.pipelines import load_pipeline
from mudi.pictures.sampling import Sampler, Sampling, Shot, Stage
from mudi.segmix import FLUX_STYLE

FOREGROUND = ("--segmenter", "foreground")
SIZE = (512, 352)  # px, of the photos that the constructed SAM sees; its masks have steps of 32
SUBJECT, BESIDE = Box(96, 96, 224, 256), Box(352, 96, 448, 192)


def draw_photo(path, *boxes, size=SIZE):
    """White rectangles on black, which the constructed SAM tells apart."""
    photo = Image.new("RGB", size, "black")
    for box in boxes:
        photo.paste("white", box)
    photo.save(path)


def covered(*boxes):
    mask = np.zeros(SIZE[::-1], dtype=bool)
    for box in boxes:
        mask[box.top : box.bottom, box.left : box.right] = True
    return mask


def nearly(mask, expected):
    """Say whether masks agree but for corners, which SAM's interpolation rounds."""
    return (mask != expected).sum() < 0.01 * expected.sum() + 20


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    path = tmp_path_factory.mktemp("sam") / "sam.pth"
    return ["--sam_checkpoint", str(path), "--sam_type", save_sam_that_sees_brightness(path)]


# The tiny SAM's kind is known to a process that has asked for one.
SERVE = """
import sys, tempfile
from pathlib import Path
from mini.tiny import save_tiny_sam
save_tiny_sam(Path(tempfile.mkdtemp()) / "sam.pth")
from mudi.studio.__main__ import main, parse_args
main(parse_args(sys.argv[1:]))
"""


def start_server(folder, *words):
    """Start the program itself; return its process and the address that it prints."""
    command = [sys.executable, "-c", SERVE, str(folder), "--port", "0", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    address = next(line.strip() for line in process.stdout if "http://" in line)
    return process, address


def test_a_mask_by_clicks_and_strokes_outlives_the_server(chromium, tmp_path, sam):
    draw_photo(tmp_path / "a0.png", SUBJECT, BESIDE)
    draw_photo(tmp_path / "a1.png", SUBJECT)
    process, address = start_server(tmp_path, *sam)
    port = urlsplit(address).port
    try:
        hand = Hand(chromium, address)
        mask = tmp_path / "mask_a0.png"
        assert hand.all_told("#strip .state") == ["no mask", "no mask"]
        hand.click(SIZE, 150, 150)
        hand.press("s")
        assert nearly(load_mask(mask), covered(SUBJECT, BESIDE))
        hand.click(SIZE, 400, 140, shift=True)  # this is not it
        assert "not saved" in hand.told("#photo-state")
        hand.press("s")
        clicked = load_mask(mask)
        assert nearly(clicked, covered(SUBJECT))
        assert hand.all_told("#strip .state")[0] == "touched by hand"

        hand.press("b")
        hand.drag(SIZE, (300, 300), (400, 300))
        hand.press("e")
        hand.drag(SIZE, (100, 120), (140, 120))
        hand.press("s")
        drawn = load_mask(mask)
        assert drawn[300, 300:400].all() and not drawn[120, 100:140].any()
        changed = drawn != clicked
        assert 100 * 14 < changed[280:].sum() < 130 * 18 and changed[:280].sum() < 60 * 18
        hand.press("Control+z")
        hand.press("s")
        assert load_mask(mask)[120, 100:140].all() and load_mask(mask)[300, 350]
        hand.press("Control+z")
        hand.press("Control+y")
        hand.press("Control+Shift+z")
        hand.press("s")
        assert np.array_equal(load_mask(mask), drawn)
        hand.press("i")  # the stroke is 8 % of the mask: no island; the next one is
        assert "no islands" in hand.told("#status")
        hand.press("b")
        hand.page.locator("#brush-size").fill("4")
        hand.drag(SIZE, (480, 20), (481, 20))
        hand.press("i")
        hand.press("s")
        assert np.array_equal(load_mask(mask), drawn)
        hand.drag(SIZE, (20, 20), (60, 20))

        process.send_signal(signal.SIGKILL)
        process.wait()
        hand.press("s")
        assert hand.page.locator("#gone").is_visible()
        assert np.array_equal(load_mask(mask), drawn)
        with served(tmp_path, *sam, "--port", str(port)) as server:
            assert server.server_port == port
            hand.open(server.address)
            hand.page.locator("#strip .tile").first.click()
            hand.settle()
            assert "not saved" in hand.told("#photo-state")
            hand.press("s")
            hand.close()
        kept = load_mask(mask)
        assert kept[20, 20:60].all() and np.array_equal(kept[40:], drawn[40:])
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".incomplete")]
    finally:
        process.kill()


def test_ten_photos_become_a_folder_that_the_checker_accepts(chromium, tmp_path, sam, capsys):
    """At most three clicks a photo, and 0.3 s of the server's time for each after the first."""
    rng = random.Random(0)
    expected = {}
    for i in range(10):
        name = f"{'ab'[i // 5]}{i % 5}.png"
        left, top = 32 * rng.randint(1, 4), 32 * rng.randint(1, 4)
        subject = Box(left, top, left + 32 * rng.randint(3, 5), top + 32 * rng.randint(3, 5))
        others = [Box(416, 32, 480, 96), Box(416, 224, 480, 320)][: i % 3]
        draw_photo(tmp_path / name, subject, *others)
        expected[name] = subject, others
    with served(tmp_path, *sam) as server:
        hand = Hand(chromium, server.address, "captions")
        for name in ("olis robot", "hta corgi"):
            hand.page.get_by_label("Name of a new subject").fill(name)
            hand.press("Enter")
        hand.page.keyboard.press("Escape")
        hand.page.locator("#tab-photos").click()
        hand.settle()
        hand.page.wait_for_timeout(500)  # looks at the first one
        hand.settle()
        clicks = []
        for subject, others in expected.values():
            before = hand.clicks
            hand.click(
                SIZE, (subject.left + subject.right) // 2, (subject.top + subject.bottom) // 2
            )
            for other in others:
                middle = (other.left + other.right) // 2, (other.top + other.bottom) // 2
                hand.click(SIZE, *middle, button="right")
            clicks.append(hand.clicks - before)
            hand.press("ArrowRight")  # saves
        assert max(clicks) <= 3
        assert hand.all_told("#strip .state") == ["touched by hand"] * 10
        hand.close()
    subjects = load_subjects(tmp_path, min_subjects=2, resolution=1024)
    assert [len(subjects.photos_of(s)) for s in subjects.names] == [5, 5] and not subjects.warnings
    for name, (subject, _) in expected.items():
        assert tight_box(load_mask(tmp_path / f"mask_{name}")) == subject
    first, *later = hand.seconds
    assert len(hand.seconds) == sum(clicks) and max(later) <= 0.3
    with capsys.disabled():
        print(
            f"\nten photos: {sum(clicks)} clicks; SAM loaded and the first photo encoded in "
            f"{hand.prepared[0]:.2f} s, its first click {first:.2f} s, later ones "
            f"{np.median(later):.3f} s, at most {max(later):.3f} s"
        )


def test_who_clicks_and_goes_on_at_once_finds_it_saved(chromium, tmp_path, sam):
    """Keys faster than the segmenter's answers and than the next photo: nothing waits unsaved."""
    for i in range(5):
        draw_photo(tmp_path / f"a{i}.png", SUBJECT)
    middle = (SUBJECT.left + SUBJECT.right) // 2, (SUBJECT.top + SUBJECT.bottom) // 2
    with served(tmp_path, *sam) as server:
        hand = Hand(chromium, server.address)
        hand.click(SIZE, *middle)  # SAM is loaded
        hand.page.keyboard.press("Control+z")

        held = []

        def go_on():
            while hand.page.locator("body").get_attribute("data-pending") != "0":
                while held:
                    held.pop(0).continue_()
                hand.page.wait_for_timeout(20)
            hand.settle()

        for what in ("cut", "photo?*", "save"):
            hand.page.route(f"**/{what}", lambda route: held.append(route))
        hand.page.mouse.click(*hand.on_screen(SIZE, *middle))
        hand.page.keyboard.press("s")  # before the mask is there,
        hand.page.keyboard.press("ArrowRight")  # and before it is saved
        go_on()
        hand.page.mouse.click(*hand.on_screen(SIZE, *middle))
        hand.page.keyboard.press("ArrowRight")
        hand.page.mouse.click(*hand.on_screen(SIZE, *middle))  # the second is still seen
        hand.page.keyboard.press("ArrowRight")  # the fourth, from the third on its way
        go_on()
        assert hand.told("#photo-name") == "a3.png"
        hand.page.unroute_all()
        hand.click(SIZE, *middle)
        hand.press("s")
        assert hand.page.locator("#conflict").is_hidden()
        seen = ["touched by hand", "touched by hand", "no mask", "touched by hand", "no mask"]
        assert hand.all_told("#strip .state") == seen
        assert hand.page.locator('.tile[data-unsaved="true"]').count() == 0
        hand.close()
    for i in (0, 1, 3):
        assert nearly(load_mask(tmp_path / f"mask_a{i}.png"), covered(SUBJECT)), i


def test_captions_are_written_as_they_are_typed_with_complaints_at_their_photos(chromium, folder):
    folder.lines[1]["licence"] = "CC0"
    folder.save()
    with served(folder.path, *FOREGROUND) as server:
        hand = Hand(chromium, server.address, "captions")
        card = hand.page.locator('.card[data-photo="a0.jpg"]')
        assert card.locator(".complaints li").count() == 0
        card.locator("textarea").fill("A photo of a robot on a shelf.")
        card.locator(".warning").wait_for()
        assert 'lacks its subject\'s name "olis robot"' in card.locator(".warning").inner_text()
        assert json.loads(folder.metadata.read_text().splitlines()[1])["text"].endswith("shelf.")
        card.locator("textarea").fill("A photo of a olis robot on a shelf.\nA olis robot.")
        card.locator(".warning").wait_for(state="detached")
        hand.settle()
        line = json.loads(folder.metadata.read_text().splitlines()[1])
        assert line["text"] == ["A photo of a olis robot on a shelf.", "A olis robot."]
        assert line["licence"] == "CC0"

        other = Hand(chromium, server.address, "captions")  # a second tab
        other.page.locator('.card[data-photo="a1.jpg"] textarea').fill(
            "A olis robot, by the other."
        )
        other.page.keyboard.press("Tab")
        other.settle()
        mine = hand.page.locator('.card[data-photo="a1.jpg"] textarea')
        mine.fill("A olis robot, by me.")
        hand.page.keyboard.press("Tab")
        hand.page.wait_for_selector("#status.bad")
        hand.settle()
        assert "changed since" in hand.told("#status")
        assert mine.input_value() == "A olis robot, by me."  # what was typed is not lost
        assert "by the other" in folder.metadata.read_text()
        mine.press("End")
        mine.type(" And so.")
        hand.page.keyboard.press("Tab")
        hand.settle()
        assert "A olis robot, by me. And so." in folder.metadata.read_text()

        name = hand.page.get_by_label("Name of a", exact=True)
        name.fill("")
        name.fill("sks robot")
        hand.page.keyboard.press("Tab")
        hand.settle()
        assert load_subjects(folder.path).names["a"] == "sks robot"
        assert all("sks robot" in p.caption for p in load_subjects(folder.path).photos_of("a"))
        other.close()
        hand.close()


def test_a_name_is_written_when_its_field_is_left_and_not_as_it_is_typed(chromium, folder):
    folder.lines[1]["text"] = "A photo of a olis robot on a red chair in a garden."
    folder.save()
    before = folder.metadata.read_text()
    with served(folder.path, *FOREGROUND) as server:
        hand = Hand(chromium, server.address, "captions")
        name = hand.page.get_by_label("Name of a", exact=True)
        caption = hand.page.locator('.card[data-photo="a0.jpg"] textarea')
        for leave, now in (("Enter", "amb robot"), ("Tab", "sks robot")):
            name.press("Control+a")
            name.type(now[0])
            hand.page.wait_for_timeout(600)  # longer than what a caption waits
            assert folder.metadata.read_text() == before
            name.type(now[1:])
            hand.press(leave)
            before = folder.metadata.read_text()
            said = f"A photo of a {now} on a red chair in a garden."
            assert json.loads(before.splitlines()[1])["text"] == caption.input_value() == said
        name.fill("a")  # as the captions have it elsewhere
        hand.press("Enter")
        hand.page.wait_for_selector("#status.bad")
        assert "could not be told from other words" in hand.told("#status")
        assert name.input_value() == "a" and folder.metadata.read_text() == before
        hand.close()


def test_suggested_captions_are_checked_and_asked_for_again(chromium, folder, endpoint):
    good = "A photo of a olis robot on a wooden shelf, seen from the front."
    bad = "A photo of a red olis robot on a shelf."
    endpoint.replies = [(200, completion(bad)), (200, completion(good))]
    words = ["--llm_url", endpoint.url, "--llm_model", "sees"]
    with served(folder.path, *FOREGROUND, *words) as server:
        hand = Hand(chromium, server.address, "captions")
        hand.page.locator('.card[data-photo="a1.jpg"]').get_by_text("Suggest").click()
        hand.settle()
        card = hand.page.locator('.card[data-photo="a1.jpg"]')
        assert card.locator("textarea").input_value() == good
        hand.close()
    assert json.loads(folder.metadata.read_text().splitlines()[2])["text"] == good
    assert len(endpoint.questions) == 2


def test_two_tabs_do_not_save_over_each_other(chromium, folder):
    mask = folder.path / "mask_a0.png"
    with served(folder.path, *FOREGROUND) as server:
        mine, theirs = Hand(chromium, server.address), Hand(chromium, server.address)
        for hand, y in ((mine, 5), (theirs, 42)):
            hand.page.locator('.tile[data-photo="a0.jpg"]').click()
            hand.settle()
            hand.press("b")
            hand.page.locator("#brush-size").fill("2")
            hand.drag((64, 48), (4, y), (60, y))
        theirs.press("s")
        saved = load_mask(mask)
        mine.press("s")
        assert mine.page.locator("#conflict").is_visible()
        assert np.array_equal(load_mask(mask), saved) and saved[42, 30] and not saved[5, 30]
        mine.press("ArrowRight")  # stays, as this is to be seen
        assert mine.told("#photo-name") == "a0.jpg"
        mine.page.locator("#keep-mine").click()
        mine.settle()
        assert load_mask(mask)[5, 30] and not load_mask(mask)[42, 30]
        theirs.drag((64, 48), (4, 2), (60, 2))
        theirs.press("s")
        theirs.page.locator("#take-theirs").click()
        theirs.settle()
        assert "not saved" not in theirs.told("#photo-state") and load_mask(mask)[5, 30]
        mine.close()
        theirs.close()


def picture_in(hand, selector):
    """Return the pixels (H, W, 3) of a picture as the page shows it."""
    script = """(image) => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const pen = canvas.getContext("2d");
        pen.drawImage(image, 0, 0);
        const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.height, canvas.width, Array.from(data)];
    }"""
    height, width, values = hand.page.locator(selector).evaluate(script)
    return np.array(values, dtype=np.uint8).reshape(height, width, 4)[..., :3]


def preview_of(folder, output, style, resolution):
    """Return the sheet that `python -m mudi.preview` writes for seed 3 and a few flags."""
    argv = f"--style {style} --resolution {resolution} --seed 3 --relative_scale 0.5 --random_flip"
    words = ["--instance_data_dir", str(folder), "--output", str(output)]
    preview.main(preview.parse_args([*words, *argv.split()]))
    return np.asarray(load_rgb(output))


def test_collages_are_those_of_the_preview(chromium, folder, tmp_path):
    with served(folder.path, *FOREGROUND) as server:
        hand = Hand(chromium, server.address, "results")
        hand.page.locator("#flag-resolution").evaluate("(input) => (input.value = 128)")
        hand.page.locator("#tab-collages").click()
        hand.page.locator("#flag-relative_scale").fill("0.5")
        hand.page.locator("#flag-random_flip").check()
        for style, resolution in (("sdxl", 128), ("flux", 96)):
            hand.page.select_option("#flag-style", style)
            hand.page.locator("#flag-resolution").fill(str(resolution))
            hand.page.locator("#collage-seed").fill("2")
            hand.page.wait_for_selector('#tiles[data-seed="2"]')
            hand.page.locator("#seed-on").click()
            hand.page.wait_for_selector('#tiles[data-seed="3"]')
            hand.settle()
            tiles = [
                Image.fromarray(picture_in(hand, f"#tiles figure:nth-child({i + 1}) img"))
                for i in range(12)
            ]
            sheet = np.asarray(contact_sheet(tiles, hand.all_told("#tiles figcaption")))
            expected = preview_of(folder.path, tmp_path / "sheet.png", style, resolution)
            assert np.array_equal(sheet, expected)
        command = shlex.split(hand.told("#command").replace("\\\n", " "))
        assert command[:3] == ["accelerate", "launch", "flux/train_segmix_lora_flux.py"]
        args = train_segmix_lora_flux.parse_args(command[3:])
        assert (args.instance_data_dir, args.seed, args.resolution) == (str(folder.path), 3, 96)
        assert (args.relative_scale, args.random_flip, args.segmix_prob) == (0.5, True, 0.3)

        hand.page.select_option("#flag-in_order", "true")  # photos, too, as a run draws them
        hand.page.locator("#tiles i").first.wait_for()
        hand.settle()
        photos = [text.startswith("photo: ") for text in hand.all_told("#tiles figcaption")]
        data = SegMixDataset(load_subjects(folder.path), SampleOptions(96, FLUX_STYLE, 0.3))
        [draws] = DrawSchedule(len(data.subjects.photos), 3, 12, 0, 1)
        assert photos == [not data[draw][0].mixed for draw in draws]
        hand.page.locator("#flag-segmix_num_subjects").fill("3")
        hand.page.wait_for_selector("#collage-problem .problem")
        assert "the metadata has 2 subjects" in hand.told("#collage-problem")
        hand.close()


def test_a_dragged_layout_is_the_start_that_the_page_showed(chromium, folder, tmp_path):
    with served(folder.path, *FOREGROUND) as server:
        hand = Hand(chromium, server.address, "layout")
        hand.page.locator("#width").fill("256")
        hand.page.locator("#height").fill("192")
        hand.page.keyboard.press("Tab")
        hand.settle()
        hand.page.locator("#shuffle").click()
        hand.settle()
        before = picture_in(hand, "#start")
        subjects = load_subjects(folder.path)
        names = list(subjects.names.values())
        prompt, stage = f"a photo of a {names[0]} and a {names[1]}", Stage(subjects, (256, 192))
        assert np.array_equal(before, np.asarray(stage.start(Shot(prompt, 1)).scene.image))
        actor = hand.page.locator('#stage .actor[data-subject="a"]')
        box = actor.bounding_box()
        hand.page.mouse.move(box["x"] + 20, box["y"] + 20)
        hand.page.mouse.down()
        hand.page.mouse.move(box["x"] - 13, box["y"] - 31, steps=5)
        hand.page.mouse.up()
        hand.settle()
        corner = actor.locator(".corner").bounding_box()
        hand.page.mouse.move(corner["x"] + 7, corner["y"] + 7)
        hand.page.mouse.down()
        hand.page.mouse.move(corner["x"] - 40, corner["y"] - 20, steps=5)
        hand.page.mouse.up()
        hand.settle()
        hand.page.get_by_label("Photo of olis robot").select_option("a2.jpg")
        hand.settle()
        actor.focus()
        hand.press("f")
        hand.page.get_by_label("Gamma of hta teddy bear").fill("0.25")
        hand.page.locator("#layout-name").fill("first one")
        hand.page.locator("#save-layout").click()
        hand.settle()
        shown = picture_in(hand, "#start")
        command = hand.told("#layout-command")
        hand.page.get_by_label("Gamma of hta teddy bear").fill("0.3")
        hand.page.keyboard.press("Tab")
        assert hand.page.locator("#layout-command").is_hidden()  # it is of another gamma
        hand.page.get_by_label("Gamma of hta teddy bear").fill("0.25")
        hand.page.keyboard.press("Tab")
        assert hand.told("#layout-command") == command
        hand.page.locator("#prompt").fill("nobody")
        hand.page.locator("#layout-problem .problem").wait_for()
        assert hand.page.locator("#layout-command").is_hidden()
        hand.page.locator("#prompt").fill(prompt)

        path = folder.path / "layouts" / "first one.json"
        layout = load_layout(path, names)
        start = stage.start(Shot(prompt, 0, 0.4, layout))
        assert layout.photos[0] == "a2.jpg" and layout.front_to_back == (0, 1)
        assert np.array_equal(np.asarray(start.scene.image), shown)
        assert not np.array_equal(shown, before)
        assert "--gamma a=0.4 b=0.25" in command and f"--layout '{path}'" in command

        path.write_text(path.read_text() + "\n")  # by an editor
        hand.page.locator("#save-layout").click()
        hand.page.wait_for_selector("#status.bad")
        assert "changed since" in hand.told("#status")
        hand.page.locator("#open-layout").click()
        hand.settle()
        assert np.array_equal(picture_in(hand, "#start"), shown)
        hand.close()


def test_what_is_dragged_is_cut_out_by_the_mask_that_is_there(chromium, folder):
    mask = np.zeros((48, 64), dtype=bool)
    mask[2:10, 2:60] = True
    with served(folder.path, *FOREGROUND) as server:
        hand = Hand(chromium, server.address, "layout")
        hand.page.get_by_label("Photo of olis robot").select_option("a0.jpg")
        hand.settle()
        ghost = hand.page.locator('#stage .actor[data-subject="a"] img')
        sizes = []
        for _ in range(2):
            ghost.evaluate("(image) => image.decode()")
            sizes.append(ghost.evaluate("(image) => [image.naturalWidth, image.naturalHeight]"))
            Image.fromarray(mask).save(folder.path / "mask_a0.png")
            hand.page.locator("#tab-captions").click()
            hand.settle()
            hand.page.locator("#tab-layout").click()
            hand.settle()
        assert sizes == [[32, 24], [58, 8]]
        hand.close()


def test_names_are_text_and_nothing_else(chromium, tmp_path):
    """File names, subjects and captions that would be markup, addresses or scripts elsewhere."""
    bad = "<img src=x onerror=document.title='owned'>"
    data = DataFolder(tmp_path / "a&b #1 %2e %", {"a": f"olis {bad}", "b": NAMES["b"]}, 1)
    hostile = [
        "a<b>&amp;.jpg",
        "a'\";--.jpg",
        "a%2e%2e%2f?x=1#y.jpg",
        "a\u202egpj.jpg",
        "a{{7}}.jpg",
    ]
    for i, name in enumerate(hostile):
        noise(seed=i).save(data.path / name)
        Image.open(data.path / "mask_a0.png").save(data.path / f"mask_{i}.png")
        line = {"id": "a", "file_name": name, "mask_path": f"mask_{i}.png", "text": f"olis {bad}"}
        data.lines.append(line)
    data.save()
    with served(data.path, *FOREGROUND) as server:
        hand = Hand(chromium, server.address)
        assert sorted(hand.all_told("#strip .name")) == sorted([*hostile, "a0.jpg", "b0.jpg"])
        for name in hostile:
            hand.page.locator("#strip .tile", has=hand.page.get_by_text(name, exact=True)).click()
            hand.settle()
            assert hand.told("#photo-name") == name
            hand.press("b")
            hand.drag((64, 48), (2, 2), (9, 9))
            hand.press("s")
        assert hand.all_told("#strip .state").count("touched by hand") == len(hostile)
        for tab in ("captions", "collages", "layout", "results"):
            hand.page.locator(f"#tab-{tab}").click()
            hand.settle()
        assert hand.page.title() == f"{data.path.name} · MuDI studio"
        assert hand.page.locator("img[src=x]").count() == 0
        hand.close()


def test_a_chat_model_lays_out_and_a_model_draws(chromium, folder, sdxl_backbone, endpoint):
    boxes = {"olis robot": [0.1, 0.2, 0.4, 0.9], "hta teddy bear": [0.5, 0.4, 0.9, 0.9]}
    endpoint.replies = [(200, completion(json.dumps({"boxes": boxes})))]
    words = ["--llm_url", endpoint.url, "--llm_model", "tiny", "--steps", "2"]
    words += ["--pretrained_model_name_or_path", str(sdxl_backbone.base)]
    with served(folder.path, *FOREGROUND, *words) as server:
        hand = Hand(chromium, server.address, "layout")
        for side in ("#width", "#height"):
            hand.page.locator(side).fill("64")
        hand.page.locator("#ask-model").click()
        hand.settle()
        assert "the chat model's layout" in hand.told("#status")
        hand.page.get_by_label("Gamma of olis robot").fill("0.2")
        hand.page.keyboard.press("Tab")
        hand.page.locator("#draw").click()
        hand.page.wait_for_selector("#drawn .result img", timeout=60_000)
        hand.settle()
        start, result = (picture_in(hand, f"#drawn {part} img") for part in ("figure >", ".result"))
        photos = [hand.page.get_by_label(f"Photo of {name}").input_value() for name in boxes]
        hand.close()
    subjects = load_subjects(folder.path)
    layout = parse_layout(json.dumps({"boxes": boxes, "photos": photos}), list(boxes))
    prompt = "a photo of a olis robot and a hta teddy bear"
    shot = Shot(prompt, 0, {"a": 0.2, "b": 0.4}, layout)
    sampler = Sampler(load_pipeline(str(sdxl_backbone.base)), Sampling((64, 64), 2), subjects)
    [expected] = sampler.draw([shot])
    assert np.array_equal(start, np.asarray(expected.start.scene.image))
    assert np.array_equal(result, np.asarray(expected.image))


def test_results_are_sorted_kept_and_rejected_by_keys(chromium, folder, tmp_path):
    pictures = copy_examples(tmp_path)
    words = ["--results", str(pictures), "--scores", str(tmp_path / "scores")]
    with served(folder.path, *FOREGROUND, *words) as server:
        hand = Hand(chromium, server.address, "results")
        assert hand.told("#results-title") == "5 pictures, 0 kept, 0 rejected"
        hand.page.select_option("#sort", "best")
        tiles = hand.page.locator("#pictures .tile")
        assert tiles.first.get_attribute("data-picture") == "good.jpg"
        assert "good" in tiles.first.inner_text() and tiles.first.locator(".box").count() == 2
        hand.press("k")
        for _ in range(3):
            hand.press("x")
        hand.press("ArrowLeft")
        hand.press("u")
        lines = [json.loads(line) for line in (pictures / "kept.jsonl").read_text().splitlines()]
        assert lines[0] == {"image": "good.jpg", "keep": True}
        assert [line["keep"] for line in lines] == [True, False, False]
        (pictures / "kept.jsonl").write_text('{"image": "good.jpg", "keep": false}\n')
        hand.press("Home")
        tiles.first.click()
        hand.press("u")
        assert "decided elsewhere" in hand.told("#status")
        hand.page.select_option("#show", "missing")
        assert tiles.count() == 1 and tiles.first.get_attribute("data-picture") == "missing.jpg"
        hand.press("Enter")
        assert "missing.jpg" in hand.told("#large-told")
        hand.press("k")
        assert '"missing.jpg", "keep": true' in (pictures / "kept.jsonl").read_text()
        hand.close()
