"""Who may ask the page's server, and what a write may replace; no browser."""

import json
from unicodedata import normalize

import numpy as np
import pytest
from helpers import DataFolder, noise
from pages import Visitor, served
from PIL import Image

from mini.tiny import save_sam_that_sees_brightness, save_tiny_owlv2
from mudi.data import DrawSchedule
from mudi.images import load_mask, note_in, tight_box
from mudi.metadata import load_subjects
from mudi.studio.collages import TILES
from mudi.studio.runs import from_runs, to_runs
from mudi.studio.server import LARGEST_BODY, Refusal

FOREGROUND = ("--segmenter", "foreground")


@pytest.fixture
def site(folder):
    with served(folder.path, *FOREGROUND) as server:
        yield Visitor(server)


def mask_of(size=(64, 48), box=(16, 12, 48, 36)):
    mask = np.zeros(size[::-1], dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_the_page_is_sealed_off(site):
    status, headers, page = site.ask("GET", "")
    assert status == 200 and b"<title>MuDI studio</title>" in page
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
    assert b"http" not in page.replace(b"http-equiv", b"")  # asks nobody else
    assert site.ask("GET", "main.js")[1]["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": None},
        {"Host": "127.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_what_another_site_asks_for_is_refused(site, folder, headers):
    port = str(site.place.port)
    sent = {name: value and value.replace("{port}", port) for name, value in headers.items()}
    before = folder.metadata.read_text()
    body = {"id": "a", "was": "olis robot", "now": "x"}
    assert site.ask("GET", "folder", headers=sent)[0] == 403
    assert site.ask("POST", "name", body, sent)[0] == 403
    assert folder.metadata.read_text() == before


@pytest.mark.parametrize("token", ["", "x", "..", "folder", "%2e%2e"])
def test_without_the_token_there_is_nothing(site, token):
    assert site.ask("GET", "", token=token)[0] == 403
    assert site.ask("GET", "folder", token=token)[0] == 403
    assert site.ask("POST", "save", {}, token=token)[0] == 403


def test_names_of_this_machine_are_let_in(site):
    own = {"Host": f"localhost:{site.place.port}"}
    assert site.ask("GET", "folder", headers=own)[0] == 200
    origin = {"Origin": f"http://127.0.0.1:{site.place.port}", "Sec-Fetch-Site": "same-origin"}
    assert site.ask("GET", "folder", headers=origin)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "../metadata.jsonl", "%2e%2e/metadata.jsonl", "..%2f..%2fserver.py", "page/main.js",
        "/etc/passwd", "main.js/", "%00", "photo?photo=../secret.png", "photo?photo=/etc/passwd",
        "photo?photo=..%2Fsecret.png", "mask?photo=%00", "thumbnail?photo=link.png",
        "photo?photo=metadata.jsonl", "cutout?subject=a&photo=../secret.png",
        "layout?name=../secret", "layout?name=..%2F..%2Fsecret", "layout?name=.",
        "result?picture=x",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder(site, folder, path):
    noise().save(folder.path.parent / "secret.png")
    (folder.path.parent / "secret.json").write_text('{"boxes": {"olis robot": [0, 0, 1, 1]}}')
    (folder.path / "link.png").symlink_to(folder.path.parent / "secret.png")
    status, _, data = site.ask("GET", path)
    assert status in (400, 403, 404, 422) and "problem" in json.loads(data)


def test_a_mask_that_is_a_link_is_not_written_through(site, folder):
    outside = folder.path.parent / "outside"
    outside.mkdir()
    (folder.path / "out").symlink_to(outside)
    folder.lines[1]["mask_path"] = "out/mask.png"
    folder.save()
    body = {"photo": "a0.jpg", "version": "", "note": "", "runs": to_runs(mask_of())}
    assert site.told("POST", "save", body)[0] == 403
    assert not list(outside.iterdir())


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {"Content-Length": str(LARGEST_BODY + 1)}, 413),
        (b"{}", {"Content-Length": "-1"}, 411),
        (b"{}", {"Content-Length": None, "Transfer-Encoding": "chunked"}, 411),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"[1]", {}, 400),
        (b"{", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"photo": "a0.jpg", "now": "x"}', {}, 400),
        (b'{"photo": ["a0.jpg"], "now": ["x"]}', {}, 400),
        (b'{"photo": "\\ud83d", "now": ["x"]}', {}, 400),
        (b'{"photo": "a9.jpg", "now": ["x"]}', {}, 404),
    ],
)  # fmt: skip
def test_bodies_are_bounded_and_must_be_what_they_should(site, folder, body, headers, status):
    before = folder.metadata.read_text()
    got, _, data = site.ask("POST", "caption", body, headers)
    assert got == status and json.loads(data)["problem"]
    assert folder.metadata.read_text() == before
    assert site.ask("GET", "folder")[0] == 200


def test_runs_are_exact_and_checked():
    rng = np.random.default_rng(0)
    for mask in (rng.random((7, 5)) > 0.5, np.ones((2, 3), bool), np.zeros((2, 3), bool)):
        runs = to_runs(mask)
        assert np.array_equal(from_runs(runs, mask.shape[::-1]), mask)
    assert to_runs(np.array([[False, True, True]])) == [1, 2]
    assert to_runs(np.array([[True, False, True]])) == [0, 1, 1, 1]
    for bad in ([5], [-1, 7], [6.0], [True] * 6, [10**9], ["6"], []):
        with pytest.raises(Refusal):
            from_runs(bad, (3, 2))


def test_a_mask_is_saved_whole_and_never_over_another(site, folder):
    opened = site.told("GET", "mask?photo=a0.jpg")[1]
    assert opened["box"] == [16, 12, 48, 36] and opened["size"] == [64, 48]
    mask = mask_of(box=(2, 2, 30, 30))
    body = {"photo": "a0.jpg", "note": '"robot" 0.9', "touched": True, "runs": to_runs(mask)}
    status, saved = site.told("POST", "save", {**body, "version": opened["version"]})
    assert status == 200
    assert np.array_equal(load_mask(folder.path / "mask_a0.png"), mask)
    assert "by hand" in note_in(folder.path / "mask_a0.png")
    [photo] = [photo for photo in saved["folder"]["photos"] if photo["name"] == "a0.jpg"]
    assert photo["state"] == "hand" and photo["version"] == saved["version"]

    status, told = site.told("POST", "save", {**body, "version": opened["version"]})
    assert status == 409 and told["changed"] and "changed since" in told["problem"]
    empty = to_runs(np.zeros((48, 64), bool))
    status, told = site.told("POST", "save", {**body, "version": saved["version"], "runs": empty})
    assert status == 422 and "covers 0.0%" in told["problem"]
    assert np.array_equal(load_mask(folder.path / "mask_a0.png"), mask)


def test_a_suggestion_is_the_detectors_box_cut_out_by_sam(tmp_path):
    """The tiny OWLv2 finds all of the picture, the constructed SAM what is bright in it."""
    photos = DataFolder(tmp_path / "pair", {"a": "olis robot", "b": "hta corgi"}, 1).path
    photo = Image.new("RGB", (512, 512), "black")
    photo.paste("white", (128, 96, 320, 416))
    photo.save(photos / "a1.png")
    photo.save(photos / "new.png")
    kind = save_sam_that_sees_brightness(tmp_path / "sam.pth")
    words = ["--sam_checkpoint", str(tmp_path / "sam.pth"), "--sam_type", kind]
    words += ["--detector", str(save_tiny_owlv2(tmp_path / "owlv2"))]
    with served(photos, *words, "--threshold", "0") as server:
        site = Visitor(server)
        status, found = site.told("POST", "suggest", {"photo": "a1.png"})
        assert status == 200 and found["note"].startswith('"robot" 0.') and found["box"]
        assert tight_box(from_runs(found["runs"], (512, 512))) == (128, 96, 320, 416)
        asked = {"photo": "new.png"}
        assert site.told("POST", "suggest", asked)[0] == 422  # whose is it?
        assert '"box"' in site.told("POST", "suggest", {**asked, "query": "box"})[1]["note"]
    with served(photos, *words, "--threshold", "1") as server:
        status, told = Visitor(server).told("POST", "suggest", {"photo": "a1.png"})
        assert status == 422 and told["problem"].startswith('no "robot" above 1.0')
    with served(photos, "--sam_checkpoint", str(tmp_path / "none.pth")) as server:
        status, told = Visitor(server).told(
            "POST", "cut", {"photo": "a1.png", "points": [[9, 9, 1]]}
        )
        assert status == 422 and "subject first" in told["problem"]
        points = [[9, 9, True]]
        status, told = Visitor(server).told("POST", "cut", {"photo": "a1.png", "points": points})
        assert status == 422 and "none.pth: no such file" in told["problem"]


def test_captions_are_refused_where_the_line_changed_and_other_keys_stay(site, folder):
    folder.lines[0]["author"] = "me"
    folder.lines[1] |= {"licence": {"name": "CC0"}, "weight": 2}
    folder.lines[2]["text"] = ["one olis robot", "two olis robot"]
    folder.save()
    was = folder.lines[1]["text"]
    status, state = site.told("POST", "caption", {"photo": "a0.jpg", "was": was, "now": ["a box"]})
    assert status == 200
    first = state["photos"][0]
    assert first["warnings"] == ['the caption lacks its subject\'s name "olis robot"']
    assert site.told("POST", "caption", {"photo": "a0.jpg", "was": was, "now": ["x"]})[0] == 409
    many = {"photo": "a1.jpg", "was": folder.lines[2]["text"], "now": ["an olis robot", " "]}
    assert site.told("POST", "caption", many)[0] == 200
    lines = [json.loads(line) for line in folder.metadata.read_text().splitlines()]
    assert lines[0]["author"] == "me" and lines[1]["licence"] == {"name": "CC0"}
    assert lines[1]["weight"] == 2 and lines[1]["text"] == "a box"
    assert lines[2]["text"] == "an olis robot" and lines[3:] == folder.lines[3:]


@pytest.mark.parametrize(("listed", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_photo_is_the_one_that_its_line_names_in_other_letters(site, folder, listed, on_disk):
    for key in ("file_name", "mask_path"):
        old = folder.lines[1][key]
        new = f"é {old}"
        (folder.path / old).rename(folder.path / normalize(on_disk, new))
        folder.lines[1][key] = normalize(listed, new)
    folder.save()
    photos = site.told("GET", "folder")[1]["photos"]
    assert len(photos) == len(folder.lines) - 1 and all(photo["listed"] for photo in photos)
    [photo] = [photo for photo in photos if photo["name"] == folder.lines[1]["file_name"]]
    assert photo["state"] == "made" and photo["text"] == folder.lines[1]["text"]
    mask = mask_of(box=(2, 2, 30, 30))
    body = {"photo": photo["name"], "note": "", "runs": to_runs(mask), "version": photo["version"]}
    assert site.told("POST", "save", body)[0] == 200
    text = {"photo": photo["name"], "was": photo["text"], "now": ["an olis robot"]}
    assert site.told("POST", "caption", text)[0] == 200
    subjects = load_subjects(folder.path)
    assert len(subjects.photos) == len(photos) and subjects.photos[0].caption == "an olis robot"
    assert np.array_equal(load_mask(subjects.photos[0].mask), mask)
    assert len(list(folder.path.glob("*.png"))) == len(photos)


def test_a_photo_on_several_lines_is_told(site, folder):
    folder.lines.append({**folder.lines[1], "id": "b", "mask_path": "none.png"})
    folder.save()
    first, *others = site.told("GET", "folder")[1]["photos"]
    told = "2 lines of metadata.jsonl list it; only the last of one subject is shown here"
    assert first["subject"] == "b" and told in first["warnings"]
    assert not any(photo["warnings"] for photo in others)


def test_a_subjects_new_name_goes_into_its_captions(site, folder):
    body = {"id": "a", "was": "olis robot", "now": "sks  robot"}
    status, state = site.told("POST", "name", body)
    assert status == 200 and state["names"]["a"] == "sks robot" and not state["warnings"]
    assert load_subjects(folder.path).photos[0].caption == "A photo of a sks robot, number 0."
    assert site.told("POST", "name", body)[0] == 409


def test_a_bare_folder_gets_its_lines_as_subjects_and_masks_come(tmp_path):
    for name in ("a0.png", "b0.png", "other.png"):
        noise().save(tmp_path / name)
    with served(tmp_path, *FOREGROUND) as server:
        site = Visitor(server)
        state = site.told("GET", "folder")[1]
        assert [photo["state"] for photo in state["photos"]] == ["none"] * 3
        save = {"version": "", "note": "", "runs": to_runs(mask_of())}
        assert site.told("POST", "save", {**save, "photo": "a0.png"})[0] == 200
        assert not (tmp_path / "metadata.jsonl").exists() or not state["names"]
        for i, name in (("a", "olis robot"), ("b", "hta corgi")):
            assert site.told("POST", "name", {"id": i, "was": None, "now": name})[0] == 200
        assert site.told("POST", "save", {**save, "photo": "b0.png"})[0] == 200
        assert [p.mask.name for p in load_subjects(tmp_path).photos] == [
            "mask_a0.png",
            "mask_b0.png",
        ]
        mine = {"photo": "other.png", "was": None, "now": "b"}
        status, state = site.told("POST", "subject", mine)
        assert status == 200 and "no such mask" in state["photos"][2]["problems"][0]
        assert site.told("POST", "save", {**save, "photo": "other.png"})[0] == 200
    assert len(load_subjects(tmp_path).photos_of("b")) == 2


def test_complaints_stand_at_their_photos_and_a_broken_file_is_told(site, folder):
    folder.lines[1]["id"] = "c"
    folder.lines[4]["mask_path"] = "nowhere.png"
    folder.lines[3]["text"] = "A photo of a thing."
    folder.lines.insert(2, "")
    folder.save()
    photos = {p["name"]: p for p in site.told("GET", "folder")[1]["photos"]}
    assert "unknown id" in photos["a0.jpg"]["problems"][0]
    assert "no such mask" in photos["b0.jpg"]["problems"][0]
    assert not photos["a1.jpg"]["problems"] and not photos["a1.jpg"]["warnings"]
    assert "lacks its subject's name" in photos["a2.jpg"]["warnings"][0]
    folder.metadata.write_text('{"id": {"a": "x"}}\n{broken\n')
    state = site.told("GET", "folder")[1]
    assert any("broken JSON" in text for text in state["problems"])
    body = {"photo": "a0.jpg", "version": "", "note": "", "runs": to_runs(mask_of())}
    assert site.told("POST", "save", body)[0] == 422
    assert folder.metadata.read_text().endswith("{broken\n")


def test_photos_that_cannot_be_read_are_told(site, folder):
    (folder.path / "a0.jpg").write_bytes(b"no photo")
    state = site.told("GET", "folder")[1]
    assert state["photos"][0]["state"] == "problem"
    assert site.told("GET", "mask?photo=a0.jpg")[0] == 422
    Image.new("L", (5, 5)).save(folder.path / "mask_a1.png")
    opened = site.told("GET", "mask?photo=a1.jpg")[1]
    assert "another size" in opened["problem"] and opened["runs"] == [64 * 48]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["{folder}", "--lora", "x"], "--lora needs --pretrained_model_name_or_path"),
        (["{folder}", "--scores", "x"], "--scores needs --results"),
        (["{folder}", "--llm_url", "http://x"], "--llm_url and --llm_model go together"),
        (["{folder}", "--results", "nowhere"], "--results nowhere: no such folder or file"),
        (["{folder}", "--port", "70000"], "--port 70000: must be between 0 and 65535"),
    ],
)
def test_flags_are_refused_at_the_door(folder, words, told):
    from mudi.studio.__main__ import main, parse_args

    with pytest.raises(SystemExit, match=told):
        main(parse_args([word.replace("{folder}", str(folder.path)) for word in words]))


def test_a_taken_port_gives_the_next(folder):
    with served(folder.path, *FOREGROUND) as first:
        port = first.server_port
        with served(folder.path, *FOREGROUND, "--port", str(port)) as second:
            assert port < second.server_port <= port + 20
            assert first.site.token != second.site.token
            assert second.address.endswith(f"/{second.site.token}/")


def test_a_scene_is_drawn_as_by_the_run_and_renamed_with_its_subjects(site, folder):
    noise(seed=99).save(folder.path / "both.jpg")
    cuts = [{"id": "a", "mask_path": "mask_a0.png"}, {"id": "b"}]
    text = "A photo of a olis robot and a hta teddy bear."
    made = {"file_name": "both.jpg", "text": text, "subjects": cuts, "source": "made"}
    folder.lines[0] |= {"shares": {"photos": 1, "made": 1}}
    folder.lines[1:] = [{**line, "source": "photos"} for line in folder.lines[1:]]
    folder.lines.append(made)
    folder.save()
    assert [p["name"] for p in site.told("GET", "folder")[1]["photos"]].count("both.jpg") == 0

    flags = "style=sdxl&resolution=64&segmix_prob=0&segmix_num_subjects=2&relative_scale=0"
    path = f"collages?{flags}&mix=segmix&seed=3&in_order=true"
    status, told = site.told("GET", path)
    subjects = load_subjects(folder.path)
    [draws] = DrawSchedule(len(subjects.pictures), 3, TILES, 0, 1, sources=subjects.sources)
    captions = [subjects.pictures[draw.photo].caption for draw in draws]
    assert status == 200 and [p["prompt"] for p in told["prompts"]] == captions
    assert captions.count(text) == TILES // 2

    site.told("POST", "name", {"id": "b", "was": "hta teddy bear", "now": "sks bear"})
    [scene] = load_subjects(folder.path).scenes
    assert scene.caption == "A photo of a olis robot and a sks bear."
