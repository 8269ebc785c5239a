"""Learned words: names in texts, tokens, start values, norms, files; on the tiny SDXL."""

import copy

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from helpers import NAMES
from safetensors.torch import load_file
from torch.nn import Parameter

from mudi import learned_words, lora
from mudi.learned_words import LearnedWords, attach, detach, fresh_words, load_words
from mudi.words import Vocabulary, Word, WordError, words_file, words_of

PAIR = words_of([NAMES["a"], NAMES["b"]])
BITWISE = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def tiny(sdxl_backbone):
    return StableDiffusionXLPipeline.from_pretrained(sdxl_backbone.base)


@pytest.fixture
def pipeline(tiny):
    yield tiny
    detach(tiny)


def encoded(pipeline, *prompts):
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), device="cpu", do_classifier_free_guidance=False
        )
    return tokens, pooled


def moved(words: LearnedWords, seed: int = 0) -> LearnedWords:
    generator = torch.Generator().manual_seed(seed)
    for values in words.rows.values():
        values.data += 0.5 * torch.randn(values.shape, generator=generator)
    return words


def test_a_word_is_the_whole_name_and_starts_from_its_noun():
    assert PAIR == (
        Word("olis robot", "robot", "olis_robot"),
        Word("hta teddy bear", "teddy bear", "hta_teddy_bear"),
    )
    assert PAIR[1].pieces(3) == ["hta_teddy_bear", "hta_teddy_bear_1", "hta_teddy_bear_2"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["robot"], '"robot" is one word'),
        (["olis robot", "Olis-robot x", "olis robot x"], 'olis_robot_x stands for both "Olis-ro'),
        (["olis robot", "olis robot 1"], 'olis_robot stands for both "olis robot" and'),
    ],
)
def test_names_that_cannot_be_told_apart_or_have_no_noun_are_refused(names, told):
    with pytest.raises(WordError, match=told):
        words_of(names)


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("a photo of a olis robot.", "a photo of a robot."),
        ("An OLIS  Robot, hta teddy bear's hat", "An robot, teddy bear's hat"),
        ("olis_robot and hta_teddy_bear", "robot and teddy bear"),
        ("polis robot, olis robots, olis, a robot", "polis robot, olis robots, olis, a robot"),
        ("the big olis robot dog", "the big dog"),
    ],
)
def test_names_are_found_in_any_case_and_never_inside_another_word(text, base):
    vocabulary = Vocabulary([*PAIR, Word("olis robot dog", "dog", "olis_robot_dog")])
    assert vocabulary.with_nouns(text) == base
    assert vocabulary.finds(text) == (text != base)


@pytest.mark.parametrize("end", [None, 2], ids=["end", "wrong-end"])
def test_a_fresh_word_is_read_as_its_noun_bit_for_bit(pipeline, end, monkeypatch):
    """Also where a configuration has CLIP's old wrong id for the end, as SDXL's do."""
    clip_g = pipeline.text_encoder_2.text_model
    if end is not None:
        monkeypatch.setattr(clip_g, "eos_token_id", end)
    texts = ["a robot", "a Teddy bear's robot, polished", "polis robots"]
    named = ["a olis robot", "a HTA teddy bear's olis robot, polished", "polis robots"]
    plain = encoded(pipeline, *texts)
    attach(pipeline, words := fresh_words(pipeline, PAIR))
    torch.testing.assert_close(encoded(pipeline, *named), plain, **BITWISE)
    torch.testing.assert_close(encoded(pipeline, *texts), plain, **BITWISE)

    moved(words)
    changed = encoded(pipeline, *named)
    assert [torch.equal(*both) for both in zip(changed[1], plain[1], strict=True)] == [
        False, False, True,
    ]  # fmt: skip
    torch.testing.assert_close(encoded(pipeline, *texts), plain, **BITWISE)
    with lora.adapters_off(words):
        torch.testing.assert_close(encoded(pipeline, *named), plain, **BITWISE)
    torch.testing.assert_close(encoded(pipeline, *named), changed, **BITWISE)
    detach(pipeline)
    assert not torch.equal(encoded(pipeline, *named)[0], plain[0])  # rare tokens again
    torch.testing.assert_close(encoded(pipeline, *texts), plain, **BITWISE)
    assert end is None or clip_g.eos_token_id == end


def test_there_are_as_many_tokens_as_the_noun_has_each_started_from_its_own(pipeline):
    tokenizer, weight = pipeline.tokenizer, pipeline.text_encoder.get_input_embeddings().weight
    ids = [tokenizer(word.noun, add_special_tokens=False).input_ids for word in PAIR]
    assert len(ids[1]) > len(ids[0]) >= 1
    words = fresh_words(pipeline, PAIR)
    assert words.counts["clip_l"] == [len(own) for own in ids]
    torch.testing.assert_close(words.rows["clip_l"].data, weight[ids[0] + ids[1]], **BITWISE)

    first = len(tokenizer)
    attach(pipeline, words)
    text = pipeline.maybe_convert_prompt("x hta teddy bear!", pipeline.tokenizer)
    found = pipeline.tokenizer(text, add_special_tokens=False).input_ids
    own = list(range(first + len(ids[0]), first + len(ids[0]) + len(ids[1])))
    around = [tokenizer(letter, add_special_tokens=False).input_ids for letter in "x!"]
    assert found == [*around[0], *own, *around[1]]
    polished = "polis_robots xolis_robot"  # tokens, too, are whole words only
    ends = [t(polished).input_ids for t in (tokenizer, pipeline.tokenizer)]
    assert ends[0] == ends[1]


def test_rescaling_by_hand():
    rows = {"clip_l": torch.tensor([[3.0, 4.0], [0.0, 2.0]]), "clip_g": torch.tensor([[1.0, 0.0]])}
    words = LearnedWords([PAIR[0]], [rows])
    words.rows["clip_l"].data = torch.tensor([[0.0, -1.0], [3.0, 4.0]])
    words.rows["clip_g"].data = torch.tensor([[0.0, 8.0]])
    words.rescale()
    assert words.rows["clip_l"].tolist() == [[0.0, -5.0], [pytest.approx(1.2), pytest.approx(1.6)]]
    assert words.rows["clip_g"].tolist() == [[0.0, 1.0]]


def test_only_the_new_rows_get_gradients_and_no_key_of_an_encoder_changes(pipeline):
    encoder = pipeline.text_encoder.requires_grad_(False)
    before = copy.deepcopy(encoder.state_dict())
    attach(pipeline, words := fresh_words(pipeline, PAIR))
    torch.testing.assert_close(encoder.state_dict(), before, **BITWISE)
    assert [p for p in encoder.parameters() if p.requires_grad] == []
    assert encoder.dtype == torch.float32
    ids = pipeline.tokenizer("a olis_robot", return_tensors="pt").input_ids
    encoder(ids).last_hidden_state.square().sum().backward()
    count = words.counts["clip_l"][0]
    gradient = words.rows["clip_l"].grad
    assert isinstance(words.rows["clip_l"], Parameter)
    assert gradient[:count].abs().sum() > 0 and gradient[count:].abs().sum() == 0


def test_the_container_brings_words_back_and_fits_them_by_name(pipeline, tmp_path):
    words = moved(fresh_words(pipeline, PAIR))
    file = words.save(tmp_path)
    assert words_file(tmp_path) == words_file(tmp_path / lora.WEIGHTS_NAME) == file
    keys = {"olis_robot.clip_l", "olis_robot.clip_g", "hta_teddy_bear.clip_l",
            "hta_teddy_bear.clip_g"}  # fmt: skip
    assert set(load_file(file)) == keys
    found, rows = load_words(file)
    assert found == PAIR

    reversed_words = fresh_words(pipeline, words_of(["hta teddy bear", "pll corgi"]))
    assert reversed_words.take(found, rows) == ["olis robot"]
    torch.testing.assert_close(reversed_words.of_word(0), words.of_word(1), **BITWISE)
    rows[1]["clip_l"] = rows[1]["clip_l"][:, :5]
    with pytest.raises(WordError, match=r"teddy bear.*x 5 numbers for clip_l and not"):
        reversed_words.take(found, rows)
    words.rows["clip_l"].data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite; not saved"):
        words.save(tmp_path)


def test_one_word_files_are_what_diffusers_textual_inversion_loads(
    pipeline, sdxl_backbone, tmp_path
):
    """The prompt has the token in the name's place; the encoders then say what ours say."""
    words = moved(fresh_words(pipeline, PAIR))
    words.save_embeddings(tmp_path)
    attach(pipeline, words)
    ours = encoded(pipeline, "a olis robot and a hta teddy bear on a beach")
    stock = StableDiffusionXLPipeline.from_pretrained(sdxl_backbone.base)
    for token in ("olis_robot", "hta_teddy_bear"):
        state = load_file(tmp_path / learned_words.EMBEDDINGS / f"{token}.safetensors")
        assert set(state) == {"clip_l", "clip_g"}
        parts = (stock.tokenizer, stock.text_encoder), (stock.tokenizer_2, stock.text_encoder_2)
        for name, (tokenizer, encoder) in zip(("clip_l", "clip_g"), parts, strict=True):
            stock.load_textual_inversion(
                state[name], token=token, tokenizer=tokenizer, text_encoder=encoder
            )
    theirs = encoded(stock, "a olis_robot and a hta_teddy_bear on a beach")
    torch.testing.assert_close(theirs, ours, **BITWISE)


def test_what_is_not_sdxl_s_or_of_another_size_is_refused(pipeline):
    rows = {"clip_l": torch.ones(1, 3), "clip_g": torch.ones(1, 3)}
    with pytest.raises(WordError, match="words of 3 numbers for clip_l, which has 32"):
        attach(pipeline, LearnedWords([PAIR[0]], [rows]))
    attach(pipeline, fresh_words(pipeline, PAIR))
    with pytest.raises(WordError, match="already"):
        attach(pipeline, fresh_words(pipeline, PAIR))
