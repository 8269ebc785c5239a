"""Captions by a model that sees: what is asked, what is let pass, what is written."""

import base64
import json
from io import BytesIO

import pytest
import torch
from endpoint import completion
from helpers import DataFolder
from PIL import Image

import generate_masks
from mini.tiny import save_tiny_clip, save_tiny_llava, save_tiny_owlv2
from mudi.ground.chat import LlmError
from mudi.masks import segment
from mudi.masks.captions import (
    CaptionError,
    LocalModel,
    caption_complaints,
    caption_question,
    served_model,
    subject_colours,
    suggest_caption,
    suggest_captions,
    tidy,
    write_caption,
)
from mudi.metadata import MetadataError, load_subjects
from mudi.prompt_tokens import clip_tokenizer

torch.set_num_threads(1)
NAME = "olis robot"
GOOD = "A olis robot stands on a red table."
NAMES = {"a": NAME, "b": "hta teddy bear"}


@pytest.fixture
def photo():
    return Image.new("RGB", (60, 40), "red")


@pytest.fixture
def data(tmp_path):
    """Two photos of each subject with plain captions; more keys and a caption list stay."""
    folder = DataFolder(tmp_path, NAMES)
    for line in folder.lines[1:]:
        line["text"] = f"A photo of a {NAMES[line['id']]}."
    folder.lines[1] |= {"rating": 5, "text": "My olis robot, by hand."}
    folder.save()
    return folder


def texts(folder):
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines[1:]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD, []),
        ("A olis robot leans on a wall, seen from below", []),
        ("", ["it is empty"]),
        ("A robot.", ['it has the name "olis robot" nowhere, not once']),
        ("A olis robots.", ['it has the name "olis robot" nowhere, not once']),
        ("olis robot, olis robot", ['it has the name "olis robot" twice, not once']),
        ("The Olis robot.", ['the name must be written "olis robot", in these very letters']),
        ("A olis robot. It sits.", ["it is more than one sentence"]),
        ("A olis robot\non grass", ["it holds a line break or a character that cannot be printed"]),
        ("A olis robot \ud83d", ["it holds a line break or a character that cannot be printed"]),
        ("A pink olis robot.", ["it tells the subject's colour (pink)"]),
    ],
)
def test_what_keeps_a_caption_from_serving_is_told(text, told):
    assert caption_complaints(text, NAME) == told


def test_a_caption_has_as_many_tokens_as_sdxls_encoders_read():
    """CLIP's real words: "a", "oli", "s", "robot", "on", and "grass" one token each."""
    assert clip_tokenizer().tokenize("A olis robot on grass") == [
        *("a</w>", "olis</w>", "robot</w>", "on</w>", "grass</w>")
    ]
    assert caption_complaints("A olis robot on" + " grass" * 71, NAME) == []
    told = ["the caption has 76 tokens; the text encoder sees the first 75"]
    assert caption_complaints("A olis robot on" + " grass" * 72, NAME) == told


@pytest.mark.parametrize(
    ("text", "colours"),
    [
        ("A small, light-blue olis robot on a red sofa.", ["blue"]),
        ("A olis robot, pink with a blue bow, on a red sofa.", ["pink", "blue"]),
        ("On a red table, in white light, a olis robot sits before a green wall.", []),
        ("The olis robot and a yellow ball lie on brown grass.", []),
        ("Beside orange leaves; white olis robot.", ["white"]),
        ("A OLIS ROBOT is Mint and shiny.", ["mint"]),
    ],
)
def test_colours_of_the_subject_are_told_from_those_about_it(text, colours):
    assert subject_colours(text, NAME) == colours


def test_a_colour_in_the_name_is_no_colour_of_the_caption():
    assert caption_complaints("A brown teddy bear on a shelf.", "brown teddy bear") == []
    assert caption_complaints("A pink olis robot.", NAME, colours=True) == []


def test_an_answer_is_tidied():
    thought = "<think>\nA robot. Hm.\n</think>\n\n"
    for answer in (GOOD, f'"{GOOD}"', f"{thought}**Caption:** {GOOD}\n", f"Caption: “{GOOD}”"):
        assert tidy(answer) == GOOD


def test_a_server_is_asked_again_with_the_complaint(photo, endpoint):
    answers = ["A pink olis robot.", "A robot.", GOOD]
    endpoint.replies = [(200, completion(answer)) for answer in answers]
    describe = served_model(endpoint.url, "seer")
    assert suggest_caption(photo.resize((3000, 2000)), NAME, describe) == GOOD
    questions = [parts[1]["text"] for parts in endpoint.questions]
    assert questions[0] == caption_question(NAME) and "photo shows a robot" in questions[0]
    assert "Your last answer was:\nA pink olis robot." in questions[1]
    assert "it tells the subject's colour (pink)" in questions[1]
    assert 'it has the name "olis robot" nowhere' in questions[2]
    assert "A pink olis robot." not in questions[2]
    url = endpoint.questions[0][0]["image_url"]["url"]
    sent = Image.open(BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert sent.size == (1024, 683) and sent.getpixel((5, 5)) == (255, 0, 0)
    assert endpoint.requests[0]["model"] == "seer"


def test_no_caption_in_all_tries_is_told_with_the_last_answer(photo, endpoint):
    endpoint.replies = [(200, completion("A robot."))] * 2
    with pytest.raises(CaptionError, match=r'no caption in 2 tries; the last was "A robot.": it'):
        suggest_caption(photo, NAME, served_model(endpoint.url, "seer"), tries=2)
    assert len(endpoint.questions) == 2


def test_a_folder_gets_captions_where_it_has_none_by_hand(data, endpoint):
    """One photo's answers all fail; the next run asks about that one alone."""
    bear = "A hta teddy bear sits in snow."
    count = len(data.lines) - 1
    of_robots = sum(line["id"] == "a" for line in data.lines[1:]) - 1
    answers = [GOOD] * of_robots + ["No."] * 2 + [bear] * (count - of_robots - 2)
    endpoint.replies = [(200, completion(answer)) for answer in answers]
    describe = served_model(endpoint.url, "seer", timeout=20)
    made = suggest_captions(data.path, describe, tries=2)
    failed = [s for s in made if s.problem]
    assert len(made) == count - 1 and len(failed) == 1
    assert "no caption in 2 tries" in failed[0].problem and failed[0].caption is None
    plain = "A photo of a hta teddy bear."
    assert texts(data.path)[0] == "My olis robot, by hand."
    assert texts(data.path).count(GOOD) == of_robots and texts(data.path).count(plain) == 1
    lines = (data.path / "metadata.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == data.lines[1] and json.loads(lines[0]) == data.lines[0]
    assert {**json.loads(lines[-1]), "text": plain} == {**data.lines[-1], "text": plain}
    load_subjects(data.path)

    asked = len(endpoint.questions)
    endpoint.replies = [(200, completion(bear))]
    assert [s.name for s in suggest_captions(data.path, describe)] == [failed[0].name]
    assert len(endpoint.questions) == asked + 1 and plain not in texts(data.path)
    assert suggest_captions(data.path, describe) == []


def test_captions_before_a_failure_of_the_server_stay(data, endpoint):
    endpoint.replies = [(200, completion(GOOD)), (500, "it broke")]
    with pytest.raises(LlmError, match="refused: Error code: 500"):
        suggest_captions(data.path, served_model(endpoint.url, "seer"))
    assert texts(data.path).count(GOOD) == 1


def test_all_photos_may_be_asked_about_and_a_bad_line_is_told(data):
    data.lines[2]["id"] = "z"
    data.lines[3]["file_name"] = "gone.png"
    data.save()
    seen = []

    def describe(image, question):
        seen.append(question)
        return GOOD.replace(NAME, NAME if NAME in question else "hta teddy bear")

    made = suggest_captions(data.path, describe, overwrite=True)
    assert [s.problem for s in made if s.problem] == [
        'its "id" is none that the first line names',
        'there is no such photo; mend "file_name"',
    ]
    assert texts(data.path)[0] == GOOD and len(seen) == len(data.lines) - 3


def test_a_line_that_changed_meanwhile_keeps_its_change(data):
    """The page and a command may write to one file."""

    def describe(image, question):
        data.lines[-1]["rating"] = 3
        data.save()
        return GOOD if NAME in question else "A hta teddy bear."

    suggest_captions(data.path, describe, tries=1)
    last = (data.path / "metadata.jsonl").read_text().splitlines()[-1]
    assert json.loads(last) == {**data.lines[-1], "rating": 3, "text": "A hta teddy bear."}
    with pytest.raises(MetadataError, match=r"has no line of nosuch.png to write its caption to"):
        write_caption(data.path, {"id": "a", "file_name": "nosuch.png"}, GOOD)
    (data.path / "metadata.jsonl").unlink()
    with pytest.raises(MetadataError, match="the first line must name the subjects"):
        suggest_captions(data.path, describe)


def test_a_caption_goes_into_its_own_line_where_a_photo_stands_on_several(data):
    """Two subjects of one photo, the second on two lines."""
    hand, robot = "My olis robot beside a bear.", data.lines[1]
    bear = {**robot, "id": "b", "text": "A photo of a hta teddy bear."}
    data.lines[1:] = [
        {**robot, "text": hand},
        bear,
        {**bear, "text": "By hand, a hta teddy bear."},
        *data.lines[2:],
    ]
    data.save()
    answer = "A hta teddy bear on a table."
    suggest_captions(data.path, lambda image, question: GOOD if NAME in question else answer)
    assert texts(data.path)[:3] == [hand, answer, "By hand, a hta teddy bear."]


def test_a_caption_that_somebody_wrote_meanwhile_stays(data):
    hand = "By hand, a hta teddy bear."

    def describe(image, question):
        data.lines[-1]["text"] = hand
        data.save()
        return GOOD if NAME in question else "A hta teddy bear."

    *_, last = suggest_captions(data.path, describe, tries=1)
    assert last.problem == "its caption has changed meanwhile, and stays"
    assert last.caption is None and texts(data.path)[-1] == hand


def test_a_local_model_answers_by_its_real_code(photo, tmp_path):
    describe = LocalModel(str(save_tiny_llava(tmp_path / "llava", GOOD)))
    assert suggest_caption(photo, NAME, describe, tries=1) == GOOD
    with pytest.raises(CaptionError, match=r"nowhere, not once"):
        suggest_caption(photo, "hta teddy bear", describe)


def test_what_is_no_vision_model_is_told_in_one_line(tmp_path):
    with pytest.raises(CaptionError, match=r"--caption_model .*: cannot be loaded"):
        LocalModel(str(save_tiny_clip(tmp_path / "clip")))
    folder = save_tiny_llava(tmp_path / "llava", GOOD)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CaptionError, match="has no chat template, so it takes no instructions"):
        LocalModel(str(folder))


def masks(folder, detector, *words):
    argv = ["--instance_data_dir", str(folder), "--query", "a=robot", "--detector", detector]
    argv += ["--threshold", "0", "--segmenter", "foreground", "--device", "cpu", *words]
    generate_masks.main(generate_masks.parse_args(argv))


def test_the_command_makes_masks_metadata_and_captions(tmp_path, endpoint, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(2):
        image = Image.new("RGB", (96, 64), "grey")
        image.paste("red", (20 + i, 10, 60, 50))
        image.save(photos / f"a{i}.png")
    detector = str(save_tiny_owlv2(tmp_path / "owl"))
    model = str(save_tiny_llava(tmp_path / "llava", GOOD))
    ready = ["--write_metadata", "--names", f"a={NAME}", "--suggest_captions"]
    masks(photos, detector, *ready, "--caption_model", model)
    assert texts(photos) == [GOOD] * 2 and "2 captions are written" in capsys.readouterr().out
    load_subjects(photos)

    served = ["--llm_url", endpoint.url, "--llm_model", "seer", "--caption_tries", "1"]
    endpoint.replies = [(200, completion(text)) for text in ("A pink olis robot.", "Hm.")]
    with pytest.raises(SystemExit, match=r"a1.png: no caption in 1 tries; the last was \"Hm\.\""):
        masks(photos, detector, *ready, *served, "--overwrite_captions", "--caption_colours")
    assert texts(photos) == ["A pink olis robot.", GOOD]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--suggest_captions", "give --caption_model, or --llm_url and --llm_model"),
        ("--suggest_captions --llm_url http://x/v1", "--llm_url and --llm_model go together"),
        ("--suggest_captions --caption_model ./nowhere", "--caption_model ./nowhere: no such fold"),
        ("--caption_model a/b", "flags of captions say nothing without --suggest_captions"),
        ("--suggest_captions --caption_model a/b", "has no metadata.jsonl; give --write_metadata"),
        ("--suggest_captions --caption_tries 0", "--caption_tries 0: must be 1 or more"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path, monkeypatch, words, told):
    monkeypatch.setattr(segment, "Detector", lambda *_: pytest.fail("a model was loaded"))
    Image.new("RGB", (96, 64)).save(tmp_path / "a0.png")
    with pytest.raises(SystemExit) as stopped:
        masks(tmp_path, "x", *words.split())
    assert told in str(stopped.value)
