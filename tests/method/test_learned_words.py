"""Learned words: names in texts, tokens, start values, norms, files; on the tiny SDXL."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionXLPipeline
from helpers import NAMES, DataFolder
from PIL import Image
from safetensors.torch import load_file
from torch.nn import Parameter
from training import reset_accelerate

import inference
from mudi import denoising, learned_words, lora, merge_lora
from mudi.backbones import sdxl
from mudi.learned_words import LearnedWords, attach, detach, fresh_words, load_words
from mudi.pictures.reward import reward_guidance
from mudi.pictures.sampling import Sampler, Sampling
from mudi.pictures.words import attach_words, find_words
from mudi.texts import class_noun
from mudi.training.checkpoints import STATE_NAME, write_digests
from mudi.training.optimizers import prepare_training
from mudi.words import FILE_NAME, Vocabulary, Word, WordError, words_file, words_of

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
        (["-- robot"], 'letters in one word only, "robot"'),
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


def test_a_run_s_folder_has_its_own_words_alone(pipeline, tmp_path):
    """Those of a run before go; what someone else put there stays."""
    folder = tmp_path / learned_words.EMBEDDINGS
    learned_words.write_results(tmp_path, fresh_words(pipeline, PAIR))
    (folder / "negative.safetensors").write_text("a user's")
    later = words_of(["hta teddy bear", "pll corgi"])
    learned_words.write_results(tmp_path, fresh_words(pipeline, later))
    assert {path.stem for path in folder.iterdir()} == {"hta_teddy_bear", "pll_corgi", "negative"}
    assert load_words(tmp_path / FILE_NAME)[0] == later
    learned_words.write_results(tmp_path, None)
    assert words_file(tmp_path) is None
    assert [path.name for path in folder.iterdir()] == ["negative.safetensors"]
    (folder / "negative.safetensors").unlink()
    learned_words.write_results(tmp_path, fresh_words(pipeline, PAIR))
    learned_words.write_results(tmp_path, None)
    assert not list(tmp_path.iterdir())
    (tmp_path / FILE_NAME).write_text("broken")  # ends no run
    learned_words.write_results(tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_embeddings_that_the_pipeline_had_before_are_read_whole(sdxl_backbone):
    own = StableDiffusionXLPipeline.from_pretrained(sdxl_backbone.base)
    parts = (own.tokenizer, own.text_encoder), (own.tokenizer_2, own.text_encoder_2)
    for tokenizer, encoder in parts:
        width = encoder.get_input_embeddings().weight.shape[1]
        rows = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
        own.load_textual_inversion(
            rows, token="badhands", tokenizer=tokenizer, text_encoder=encoder
        )
    plain = encoded(own, "a robot, badhands", "a robot")
    attach(own, fresh_words(own, PAIR))
    torch.testing.assert_close(encoded(own, "a olis robot, badhands", "a robot"), plain, **BITWISE)
    with lora.adapters_off(*learned_words.attached(own)):
        found = encoded(own, "a olis robot, badhands", "a robot")
    torch.testing.assert_close(found, plain, **BITWISE)


def test_what_is_not_sdxl_s_or_of_another_size_is_refused(pipeline):
    rows = {"clip_l": torch.ones(1, 3), "clip_g": torch.ones(1, 3)}
    with pytest.raises(WordError, match="words of 3 numbers for clip_l, which has 32"):
        attach(pipeline, LearnedWords([PAIR[0]], [rows]))
    attach(pipeline, fresh_words(pipeline, PAIR))
    with pytest.raises(WordError, match="already"):
        attach(pipeline, fresh_words(pipeline, PAIR))


def loaded(backbone, folder, names, prompts, *more):
    """The arguments and models of a run with learned words, as the script loads them."""
    reset_accelerate()
    args = backbone.script.parse_args(backbone.flags(folder, "--learn_words", *more))
    torch.manual_seed(0)
    models = backbone.script.load_models(args, Accelerator(cpu=True), prompts, names)
    return args, models


def a_task(schedule, prompts):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(len(prompts), 4, 8, 8, generator=generator)
    sizes = torch.tensor([[64, 64, 0, 0]] * len(prompts))
    conditions = sdxl.size_conditions(sizes, 64, real_sizes=False)
    weight = torch.ones(len(prompts), 1, 8, 8)
    return denoising.make_task(schedule, latents, weight, prompts, conditions, generator)


@pytest.mark.parametrize("more", ["", "--use_dora", "--train_text_encoder --use_dora"])
@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (["olis dog"], [1]),
        (["hta black dog", "olis dog"], [2, 1]),
        (["hta black dog", "black dog"], [2, 1]),  # one's noun is the other's name
    ],
)
def test_dco_of_a_fresh_run_is_log_two_and_its_reference_stays_the_base(
    sdxl_backbone, tmp_path, more, names, counts
):
    prompts = [f"a {name} and a dog" for name in names]
    args, models = loaded(sdxl_backbone, tmp_path, names, prompts, more)
    assert models.words.counts == {"clip_l": counts, "clip_g": counts}
    task, denoiser = a_task(models.schedule, prompts), models.denoiser.train()
    networks = (denoiser, denoiser)
    loss = denoising.training_loss(*networks, task, len(prompts), args.dco_beta, 1.0)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4 if "dora" in more else 1e-7)
    loss.backward()
    for values in models.words.rows.values():
        assert (values.grad.abs().sum(dim=1) > 0).all()

    def reference():
        with torch.no_grad(), lora.adapters_off(denoiser):
            return denoising.denoising_errors(denoiser, task)

    before = reference()
    moved(models.words)
    assert torch.equal(reference(), before)
    with torch.no_grad():
        assert not torch.allclose(denoising.denoising_errors(denoiser, task), before, rtol=1e-4)


def test_a_step_moves_the_new_rows_alone_and_keeps_their_norms(sdxl_backbone, tmp_path):
    names, prompts = NAMES.values(), ["a olis robot", "a pll corgi", "a robot"]
    args, models = loaded(sdxl_backbone, tmp_path, names, prompts, "--word_learning_rate 0.01")
    encoders = models.denoiser.text_encoders
    frozen = {key: value.clone() for key, value in encoders.state_dict().items()}
    starts = {name: values.detach().clone() for name, values in models.words.rows.items()}
    plan = SimpleNamespace(num_steps=1, resume=None)
    accelerator = Accelerator(cpu=True)
    training = prepare_training(accelerator, args, plan, StableDiffusionXLPipeline, models)
    rates = [group["lr"] for group in training.optimizer.param_groups]
    assert rates == [1e-3, 0.01]
    task = a_task(models.schedule, prompts)
    loss = denoising.training_loss(training.denoiser, training.base, task, 3, 10.0, 1.0)
    accelerator.backward(loss)
    training.optimizer.step()
    torch.testing.assert_close(dict(encoders.state_dict()), frozen, **BITWISE)
    for name, values in models.words.rows.items():
        counts = models.words.counts[name]
        still = [torch.equal(*both) for both in zip(
            values.split(counts), starts[name].split(counts), strict=True)]  # fmt: skip
        assert still == [False, True, False]  # no prompt has the teddy bear
        torch.testing.assert_close(values.norm(dim=1), starts[name].norm(dim=1))


RESUMABLE = [
    "--dataloader_num_workers 2 --segmix_start_step 2 --gradient_accumulation_steps 2",
    "--with_prior_preservation --class_data_dir {prior} --dco_beta 10 --train_text_encoder",
    "--use_dora --lr_scheduler cosine --mixed_precision bf16 --gradient_checkpointing",
]


@pytest.mark.parametrize("more", RESUMABLE)
def test_two_and_two_resumed_steps_equal_four_straight_ones(
    sdxl_backbone, tmp_path, prior_folder, more
):
    words = "--learn_words --word_learning_rate 0.01 --max_train_steps 4 --checkpointing_steps 2"
    more = more.format(prior=prior_folder)
    straight = sdxl_backbone.train(tmp_path / "straight", words, more)
    (tmp_path / "resumed").mkdir()
    (straight / "checkpoint-2").rename(tmp_path / "resumed/checkpoint-2")
    resumed = sdxl_backbone.train(
        tmp_path / "resumed", words, more, "--resume_from_checkpoint latest"
    )
    for name in (lora.WEIGHTS_NAME, FILE_NAME, "embeddings/olis_robot.safetensors"):
        files = [load_file(folder / name) for folder in (straight, resumed)]
        torch.testing.assert_close(*files, **BITWISE)
    early = load_file(tmp_path / "resumed/checkpoint-2" / FILE_NAME)
    assert not torch.equal(early["olis_robot.clip_l"], files[0]["clip_l"])


def test_a_run_leaves_its_words_and_says_what_they_cost_and_how_to_prompt(
    sdxl_backbone, tmp_path, caplog
):
    out = sdxl_backbone.train(
        tmp_path / "out", "--learn_words --max_train_steps 2 --save_steps 1",
        "--num_validation_images 1 --num_validation_inference_steps 1 --word_learning_rate 0.01",
        "--validation_prompt=olis_robot",
    )  # fmt: skip
    told = "GB), and 13 of 14 prompts are encoded whenever they come"
    assert any(told in text for text in caplog.messages), caplog.messages
    tokens = {"olis_robot.safetensors", "hta_teddy_bear.safetensors"}
    for folder in (out, out / "save-1"):
        assert {p.name for p in (folder / learned_words.EMBEDDINGS).iterdir()} == tokens
    one, two = (load_words(words_file(folder))[1] for folder in (out / "save-1", out))
    assert not torch.equal(one[0]["clip_l"], two[0]["clip_l"])
    card = (out / "README.md").read_text()
    assert "- olis robot: `olis_robot`" in card and "eos_token_id" in card
    assert 'image = pipeline(prompt="olis_robot")' in card

    again = sdxl_backbone.flags(tmp_path / "again", f"--resume_lora={out} --max_train_steps 1")
    with pytest.raises(SystemExit, match=r"are learned words; pass --learn_words"):
        sdxl_backbone.run(again)
    sdxl_backbone.run([*again, "--learn_words", "--word_learning_rate=1e-30"])
    three = load_words(words_file(tmp_path / "again"))[1]
    torch.testing.assert_close(three, two)


def test_words_are_a_run_s_own_and_older_checkpoints_go_on(sdxl_backbone, tmp_path, caplog):
    """A run without words after one with them leaves none; a flag that came later has its default.

    Captions from which a word is not learned are told.
    """
    data = DataFolder(tmp_path / "data", NAMES)
    for line in data.lines[1:]:
        if line["id"] == "a":
            line["text"] = "two olis robots"
    data.save()
    short = "--checkpointing_steps 1 --max_train_steps"
    out = sdxl_backbone.train(tmp_path / "out", "--learn_words", short, "1", data=data.path)
    told = (
        "--learn_words: 3 of 9 captions lack a subject's name, whole and in the singular, as \"two"
    )
    assert any(told in text for text in caplog.messages), caplog.messages
    assert words_file(out) is not None
    sdxl_backbone.train(out, "--overwrite_output_dir", short, "1", data=data.path)
    assert words_file(out) is None and not (out / learned_words.EMBEDDINGS).exists()

    state = out / "checkpoint-1" / STATE_NAME
    record = json.loads(state.read_text())
    assert record["settings"].pop("learn_words") is False
    state.write_text(json.dumps(record))
    write_digests(state.parent)
    sdxl_backbone.train(out, "--resume_from_checkpoint latest", short, "2", data=data.path)
    assert (out / "checkpoint-2").is_dir()


def test_flux_and_names_of_one_word_are_refused_with_the_reason(
    sdxl_backbone, flux_backbone, folder
):
    with pytest.raises(SystemExit, match="--learn_words: not with FLUX: it reads prompts by T5"):
        flux_backbone.train(folder.path / "out", "--learn_words", data=folder.path)
    folder.lines[0]["id"]["a"] = "robot"
    folder.save()
    with pytest.raises(SystemExit, match='--learn_words: the name "robot" is one word'):
        sdxl_backbone.train(folder.path / "out", "--learn_words", data=folder.path)


# Pictures


def saved(folder, pipeline, name, seed):
    """A run's folder with one learned word."""
    folder.mkdir()
    moved(fresh_words(pipeline, words_of([name])), seed).save(folder)
    return folder


def test_words_of_several_loras_are_joined_and_a_clash_says_which(pipeline, tmp_path, caplog):
    one = saved(tmp_path / "one", pipeline, "olis robot", 1)
    other = saved(tmp_path / "other", pipeline, "hta teddy bear", 2)
    clashing = saved(tmp_path / "again", pipeline, "Olis Robot", 3)
    prompts = ["a olis robot", "a hta teddy bear"]
    plain = encoded(pipeline, *prompts)[0]
    alone = []
    for folder in (one, other):
        attach_words(pipeline, [str(folder)])
        alone.append(encoded(pipeline, *prompts)[0])
    attach_words(pipeline, [str(one), str(other), str(one / lora.WEIGHTS_NAME)])
    both = encoded(pipeline, *prompts)[0]
    assert torch.equal(both, torch.stack([alone[0][0], alone[1][1]]))
    assert torch.equal(alone[0][1], plain[1]) and not torch.equal(both[1], plain[1])
    with pytest.raises(WordError, match=r'olis_robot stands for both "olis robot".*one/.*again/'):
        attach_words(pipeline, [str(one), str(clashing)])
    attach_words(pipeline, [])
    assert torch.equal(encoded(pipeline, *prompts)[0], plain)


def test_words_come_from_the_hub_s_cache_too(pipeline, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--somebody--pets"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots").mkdir()
    assert find_words("somebody/pets", str(tmp_path)) is None
    assert "somebody/pets: no way to ask the hub" in caplog.text
    saved(repository / "snapshots/abc", pipeline, "olis robot", 1)
    found = find_words("somebody/pets", str(tmp_path))
    assert load_words(found)[0] == PAIR[:1]


def test_inference_and_validation_read_the_words_unasked_and_a_merge_keeps_them(
    sdxl_backbone, tmp_path, monkeypatch
):
    """The picture of validation, of inference.py, and of the run's own words are the same."""
    shown = "--num_validation_images 1 --num_validation_inference_steps 2 --resolution 64"
    runs = [
        sdxl_backbone.train(
            tmp_path / name, "--learn_words --word_learning_rate 0.3 --max_train_steps 1", shown,
            "--validation_prompt=hta_teddy_bear", f"--seed={seed}",
        )
        for name, seed in (("one", 7), ("two", 8))
    ]  # fmt: skip
    base = f"--pretrained_model_name_or_path={sdxl_backbone.base}"

    def picture(lora_path, name):
        out = tmp_path / name
        words = [base, f"--lora={lora_path}", f"--output_dir={out}", "--prompt=hta teddy bear",
                 "--steps=2", "--resolution=64", "--seed=7", "--num_images=1"]  # fmt: skip
        inference.main(inference.parse_args(words))
        return np.asarray(Image.open(out / "000_000.png")).astype(int)

    ours = picture(runs[0], "ours")
    validated = np.asarray(Image.open(runs[0] / "validation/validation-000001-0.png")).astype(int)
    assert abs(ours - validated).max() <= 1
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((runs[0] / lora.WEIGHTS_NAME).read_bytes())
    assert abs(picture(bare, "without") - ours).max() > 1
    merged = tmp_path / "merged.safetensors"
    merge_lora.main(merge_lora.parse_args([str(runs[0]), f"--output={merged}"]))
    assert words_file(merged).name == f"merged_{FILE_NAME}"
    assert abs(picture(merged, "merged") - ours).max() <= 1
    into = runs[1] / "merged.safetensors"  # where runs[1]'s words are
    with pytest.raises(SystemExit, match="would be taken for its learned words; give another"):
        merge_lora.main(merge_lora.parse_args([str(bare), f"--output={into}"]))
    monkeypatch.setattr(inference, "load_pipeline", lambda *_: pytest.fail("was loaded"))
    words = [base, "--lora", *map(str, runs), f"--output_dir={tmp_path / 'clash'}", "--prompt=x"]
    with pytest.raises(SystemExit, match=r"--lora: .* olis_robot stands for both .*one/.*two/"):
        inference.main(inference.parse_args(words))
    with pytest.raises(SystemExit, match=r"olis_robot stands for both"):
        merge_lora.main(merge_lora.parse_args([*map(str, runs), f"--output={merged}"]))


def test_reward_guidance_asks_the_base_for_the_noun(pipeline):
    """A reward of 0 is the base's picture, however far the word has moved."""

    def picture(prompt):
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        return pipeline(
            prompt, latents=latents, height=64, width=64, num_inference_steps=2, output_type="np",
            guidance_scale=5.0,
        ).images  # fmt: skip

    base = picture("a robot")
    attach(pipeline, moved(fresh_words(pipeline, PAIR)))
    assert abs(picture("a olis robot") - base).max() > 1e-4
    with reward_guidance(pipeline, torch.zeros(1, 4, 8, 8), ["a robot"], 5.0):
        assert abs(picture("a olis robot") - base).max() < 1e-5


def test_the_base_is_asked_as_it_stands_also_where_a_noun_is_another_s_name(pipeline):
    names = ["hta black dog", "black dog"]
    plain = encoded(pipeline, "a black dog")
    attach(pipeline, words := moved(fresh_words(pipeline, words_of(names))))
    with words.as_they_are(), lora.adapters_off(words):
        torch.testing.assert_close(encoded(pipeline, "a black dog"), plain, **BITWISE)
    sampling = Sampling((64, 64), 1)
    sampler = Sampler(pipeline, sampling, None, nouns={name: class_noun(name) for name in names})
    assert sampler.base_prompt("a hta black dog, a black_dog") == "a black dog, a dog"
