"""loop.toml, and the command lines that follow from it."""

from pathlib import Path

import pytest
from helpers import ROOT
from looping import write_loop

from mudi.backbones.table import BACKBONES
from mudi.ground.errors import SetupError
from mudi.loop.settings import read_settings
from mudi.loop.stages import flag_words, picture_flags, round_of, train_words


def problems_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "loop.toml"
    path.write_text(text)
    with pytest.raises(SetupError) as caught:
        read_settings(path)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


def test_all_that_is_wrong_with_keys_and_values_is_told_at_once(tmp_path):
    text = 'prompts = 3\nrounds = 0\nreal_share = 1\nrun = 1\nstop = 2\n[pick]\nmin_score = "a"\n'
    told = problems_of(tmp_path, text)
    for wanted in (
        "prompts = 3: must be a path",
        "rounds 0: must be 1 or more",
        "real_share 1: must be above 0 and below 1",
        '"run" is no key; there are output_dir',
        "stop must be a table: [stop]",
        "pick.min_score = 'a': must be a number",
        'no "output_dir"',
        'no "held_out"',
    ):
        assert any(line.startswith(wanted) for line in told), (wanted, told)
    assert problems_of(tmp_path, "x = ")[0].startswith("no TOML")


def test_values_that_fit_no_loop_are_told(tmp_path):
    path = write_loop(tmp_path, tmp_path)
    text = path.read_text()
    wrong = {"real_share = 0.5": "real_share = 0.12345", '"sdxl"': '"sd1"'}
    for old, new in wrong.items():
        text = text.replace(old, new)
    told = problems_of(tmp_path, text + 'measure = "luck"\n')
    assert [line.split(":")[0] for line in told] == [
        "backbone sd1", "stop.measure luck", "real_share 0.12345",
    ]  # fmt: skip


def test_shares_are_the_fewest_whole_numbers(tmp_path):
    path = write_loop(tmp_path, tmp_path)
    path.write_text(path.read_text().replace("real_share = 0.5", "real_share = 0.75"))
    assert read_settings(path).shares == (3, 1)


def test_every_backbone_has_a_script():
    assert all((ROOT / backbone.script).is_file() for backbone in BACKBONES.values())


def test_flags_of_every_kind_become_words():
    flags = {"on": True, "off": False, "n": 3, "many": ["a b", 2], "by": {"a": 1, "b": "x y"}}
    assert flag_words(flags) == [
        "--on", "--no-off", "--n=3", "--many", "a b", "2", "--by", "a=1", "b=x y",
    ]  # fmt: skip


def test_a_round_trains_on_from_the_last_lora_on_its_picks(tmp_path):
    settings = read_settings(write_loop(tmp_path, tmp_path))
    first, second = (train_words(settings, round_of(settings, i)) for i in (0, 1))
    assert f"--instance_data_dir={settings.instance_data_dir}" in first
    assert "--max_train_steps=4" in first and "--seed=3" in first
    assert not any(word.startswith("--resume_lora") for word in first)
    out = settings.output_dir
    assert f"--instance_data_dir={out / 'round_0/data'}" in second
    assert f"--resume_lora={out / 'round_0/lora'}" in second
    assert {"--max_train_steps=3", "--rank=2", "--seed=4"} <= set(second)


def test_no_picture_that_is_learned_from_has_a_held_out_one_s_seed(tmp_path):
    """Nor that of a candidate: equal seeds are equal noise, layouts and collages."""
    path = write_loop(tmp_path, tmp_path)
    path.write_text(path.read_text().replace("num_images = 3", "num_images = 3\nbest_of = 4"))
    settings = read_settings(path)

    def seeds(number, held_out):
        flags = picture_flags(settings, round_of(settings, number), held_out)
        return set(range(flags["seed"], flags["seed"] + 3 * 4))

    assert seeds(0, True) == seeds(1, True)
    found = [seeds(0, True), *(seeds(number, False) for number in range(3))]
    assert len(set.union(*found)) == sum(map(len, found))
