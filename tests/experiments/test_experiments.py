"""The comparison of methods on random models: from the plan to the plots, stopped and continued."""

import csv
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image
from test_launch import LAUNCH, offline
from training import lora_of, reset_accelerate

from experiments import by_hand, check_metric, compare_methods, gather, making
from experiments.plan import (
    DIFFERENT_CLASSES,
    EXPERIMENTS,
    SAME_CLASS,
    SEGMIX,
    DataSet,
    Variant,
    covers,
    methods,
    plan_cases,
    plan_units,
)
from experiments.plots import FIGURES, write_figures
from experiments.results import common_trainings, flat, markdown, summarise
from experiments.rows import Row, read_rows, rows_of, write_rows
from experiments.stats import Interval, agreement, bootstrap, cohens_kappa, ranked_rightly
from mini import recipe
from mini.tiny import save_tiny_dinov2, save_tiny_owlv2, tiny_sdxl
from mudi.segmix import CUTMIX_NEGATIVE_PROMPT

torch.set_num_threads(1)
FOXES = DataSet("foxes", Path("foxes"), {"a": "zul fox", "b": "pll fox"})
PETS = DataSet("pets", Path("pets"), {"a": "ubo cat", "b": "mig dog"})
THREE = DataSet("three", Path("three"), {"a": "olis robot", "b": "ubo cat", "c": "mig dog"})
DOSE = replace(FOXES, name="fox_dose_2")
SETS = [FOXES, PETS, THREE, DOSE]


# Statistics


def test_the_bootstrap_of_equal_values_has_no_width():
    assert bootstrap([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5)


def test_the_bootstrap_interval_is_that_of_a_mean():
    """100 coins, half of them heads: 0.5 with a standard error of 0.05, so 0.4 to 0.6."""
    interval = bootstrap([0.0, 1.0] * 50)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.40, abs=0.015)
    assert interval.high == pytest.approx(0.60, abs=0.015)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_a_ranking_counts_the_pairs_in_the_right_order():
    """Of 3 > 1, 3 > 2, 2 > 1 and 2 = 2: three and a half of four."""
    assert ranked_rightly([3, 2], [1, 2]) == 0.875


def test_agreement_by_hand():
    """Judges agree on 3 of 4; by chance on 1/2 · 3/4 + 1/2 · 1/4 = 1/2; kappa 0.25 / 0.5."""
    ours, theirs = [True, True, False, False], [True, True, True, False]
    assert agreement(ours, theirs) == 0.75
    assert cohens_kappa(ours, theirs) == 0.5
    assert cohens_kappa([True], [True]) is None


# The plan


def test_the_kind_of_a_data_set_follows_from_its_nouns():
    kinds = [SAME_CLASS, DIFFERENT_CLASSES, "3 subjects", "2 traits"]
    assert [data_set.kind for data_set in SETS] == kinds


def test_seg_mix_and_mudi_share_a_lora_and_no_picture_is_planned_twice():
    units = plan_units(plan_cases(["methods", "losses", "gamma"], gamma=0.1), SETS, seeds=(0, 5))
    # two LoRAs of two pairs; DreamBooth, Cut-Mix, Seg-Mix with either loss, and one without DCO
    assert len(units) == 2 * 2 * 7
    [unit] = [unit for unit in units if unit.name == "segmix/foxes/5"]
    assert unit.variants[:2] == (Variant(SEGMIX), Variant(SEGMIX, 0.1))
    assert len(unit.variants) == len(set(unit.variants)) == 8  # the gammas, 0 and 0.1 among them
    assert unit.alone == {Variant(SEGMIX), Variant(SEGMIX, 0.1)}  # not for the curve over gamma


def test_experiments_cover_the_data_sets_that_they_are_about():
    seen = {
        name: [s.name for s in SETS if covers(case, s)]
        for name in EXPERIMENTS
        for case in plan_cases([name], 0.1)
    }
    pairs = ["foxes", "pets"]
    others = {"subjects": ["pets", "three"], "dose": ["fox_dose_2"]}
    assert seen == dict.fromkeys(seen, pairs) | others


def test_cut_mix_alone_has_a_negative_prompt():
    told = {label: variant.training.negative_prompt for label, variant in methods(0.1).items()}
    assert told == dict.fromkeys(told) | {"Cut-Mix": CUTMIX_NEGATIVE_PROMPT}


def test_a_size_ratio_becomes_scales_of_which_the_larger_is_1():
    variant = Variant(SEGMIX, 0.1, 0.5)
    assert variant.scales(["a", "b"]) == {"a": 1.0, "b": 0.5}
    assert replace(variant, size_ratio=4.0).scales(["a", "b"]) == {"a": 0.25, "b": 1.0}
    assert Variant(SEGMIX).scales(["a", "b"]) is None


# Results


def line(boxes, verdict="good", score=1.0, matched=(0, 1), near=((0, 1.0), (1, 1.0)), **more):
    """A line of scores.jsonl; near is whom each box is most like, and how clearly."""
    subjects = {name: {"detection": i} for name, i in zip("ab", matched, strict=True)}
    near = near[: len(boxes)]
    scores = {
        "score": score,
        "verdict": verdict,
        "subjects": subjects,
        "likenesses": [{"subject": i, "separation": far} for i, far in near],
        "similarity": [[0.8, 0.3] if i == 0 else [0.3, 0.6] for i, _ in near],
    }
    told = {"image": "x.png", "variant": "segmix_gamma_0", "prompt": "two foxes", "seed": 0}
    told |= {"training": 0, "alone": None, "answers": [0] * len(boxes)}
    return {**told, "boxes": boxes, "scores": {"net@1": scores}, **more}


def test_a_row_measures_the_second_subject_s_size_by_the_first_s():
    """The first subject is box 1, 20 x 10; the second is box 0, 5 x 8."""
    [row] = rows_of(line([[0, 0, 5, 8], [0, 0, 20, 10]], matched=(1, 0)), FOXES, ["net"])
    assert row.size_ratio == 0.4
    assert (row.embedder, row.kind, row.boxes, row.success) == ("net", SAME_CLASS, 2, True)
    assert row.cosines == (0.8, 0.6)
    [row] = rows_of(line([[0, 0, 5, 8]], "missing", matched=(0, None)), FOXES, ["net"])
    assert row.size_ratio is None and not row.success and row.cosines == (0.8, 0.3)


TWO = [[0, 0, 8, 8], [0, 0, 8, 4]]


@pytest.mark.parametrize(
    "data_set, given, words",
    [
        (PETS, line(TWO, answers=[1, 0]), ["swap"]),  # the dog's box looks like the cat
        (FOXES, line(TWO), []),  # whose box is whose, nobody knows
        (FOXES, line(TWO, near=((0, 1.0), (0, 0.9))), ["duplicate"]),
        (FOXES, line(TWO, near=((0, 1.0), (1, 0.2))), ["merge"]),
        (FOXES, line(TWO[:1], matched=(0, None)), ["drop"]),
    ],
)
def test_a_row_names_what_went_wrong(data_set, given, words):
    [row] = rows_of(given, data_set, ["net"])
    assert list(row.failures) == words


@pytest.mark.parametrize(
    "boxes, near, verdict, words",
    [
        (1, [(1, 0.6)], "good", []),
        (1, [(1, 0.4)], "mixed", []),
        (1, [(0, 0.6)], "mixed", ["bleed"]),
        (2, [(1, 1.0), (0, 1.0)], "extra", ["bleed"]),
        (0, [], "missing", []),
    ],
)
def test_a_subject_alone_is_there_once_and_clearly(boxes, near, verdict, words):
    [row] = rows_of(line(TWO[:boxes], near=near, alone="b"), FOXES, ["net"])
    assert (row.alone, row.verdict, list(row.failures), row.score) == ("b", verdict, words, None)


def some_rows() -> list[Row]:
    """Seg-Mix on foxes: D&C 1 (good) and 0 (one box); then the second fox alone, as it should."""
    good = line(TWO, background=True)
    bad = line(TWO[:1], "missing", 0.0, matched=(0, None), seed=1, image="y.png")
    solo = line(TWO[:1], near=[(1, 1.0)], alone="b", image="z.png")
    return [row for made in (good, bad, solo) for row in rows_of(made, FOXES, ["net"], True)]


def test_a_summary_by_hand():
    cases = [case for case in plan_cases(["gamma"], 0.1) if case.value == 0]
    [summary] = summarise(some_rows(), cases, SETS)
    assert (summary.experiment, summary.kind, summary.num_subjects) == ("gamma", SAME_CLASS, 2)
    assert (summary.data_sets, summary.trainings, summary.pictures) == (1, 1, 2)
    assert summary.found["score"] == summary.found["success"] == Interval(0.5, 0.0, 1.0)
    assert summary.found["size_ratio"] == Interval(1.0, 1.0, 1.0)
    means = {name: interval.mean for name, interval in summary.found.items()}
    assert means == {
        **{"counted": 0.5, "score": 0.5, "success": 0.5, "background": 1, "size_ratio": 1},
        "unmixed": 1,  # in the picture with two boxes each fox is found, at 0.8 and 0.6
        "collapsed": 0.25,  # one of four foxes is not found, but for a box at 0.3
        **{"merge": 0, "drop": 0.5, "duplicate": 0},  # of one class, swaps can't be told
        **{"solo_success": 1, "solo_bleed": 0, "solo_count": 0},
    }
    columns = flat(summary)
    assert (columns["success"], columns["success_low"], columns["success_high"]) == (0.5, 0, 1)


def test_what_others_are_behind_is_paired_by_picture():
    """MuDI succeeds in both pictures, Seg-Mix in the first: it is 0.5 behind."""
    cases = plan_cases(["methods"], 0.1)
    pictures = [row for row in some_rows() if not row.alone]
    best = [replace(row, variant="segmix_gamma_0.1", verdict="good") for row in pictures]
    told = {one.label: one for one in summarise([*pictures, *best], cases, SETS)}
    assert told["Seg-Mix"].behind["success"].mean == 0.5
    assert told["MuDI"].behind == {}


def test_an_experiment_counts_the_trainings_that_all_its_cases_have():
    """A second training of Seg-Mix alone counts in none of the two."""
    cases = plan_cases(["methods"], 0.1)
    rows = some_rows()
    rows += [replace(row, variant="segmix_gamma_0.1") for row in rows]
    alone = [replace(row, training=1, verdict="mixed") for row in some_rows()]
    assert common_trainings(rows + alone, cases) == {"methods": {("foxes", 0)}}
    assert summarise(rows + alone, cases, SETS) == summarise(rows, cases, SETS)
    more = [replace(row, variant="segmix_gamma_0.1") for row in alone]
    assert {one.trainings for one in summarise(rows + alone + more, cases, SETS)} == {2}


def test_pairs_of_both_kinds_are_also_counted_together():
    cases = [case for case in plan_cases(["gamma"], 0.1) if case.value == 0]
    rows = some_rows()
    rows += [replace(row, data_set="pets", kind=DIFFERENT_CLASSES) for row in rows]
    kinds = {one.kind: one.data_sets for one in summarise(rows, cases, SETS)}
    assert kinds == {SAME_CLASS: 1, DIFFERENT_CLASSES: 1, "all pairs": 2}


def test_a_table_for_reading():
    cases = [case for case in plan_cases(["gamma"], 0.1) if case.value == 0]
    text = markdown(summarise(some_rows(), cases, SETS)).splitlines()
    assert text[0] == "## gamma, same class, by net"
    assert text[2].startswith("|  | data sets x trainings | pictures | right count | D&C | success")
    assert text[4].startswith("| Seg-Mix (0) | 1 x 1 | 2 | 50% [0%, 100%] | 0.500 [0.000, 1.000]")


def test_every_experiment_has_its_figure(tmp_path):
    """Also where no picture has two boxes, so that there is no size to draw."""
    cases = plan_cases(FIGURES, 0.1)
    [one] = rows_of(line([], "missing", 0.0, matched=(None, None)), FOXES, ["net"])
    rows = [
        replace(one, variant=case.variant.name, data_set=s.name, kind=s.kind)
        for case in cases
        for s in SETS
        if covers(case, s)
    ]
    written = write_figures(tmp_path, summarise(rows, cases, SETS))
    assert {path.name for path in written} == {f"{name}.png" for name in FIGURES}
    assert all(np.asarray(Image.open(path)).std() > 0 for path in written)


# By hand


def results_file(folder: Path) -> Path:
    """Four pictures by one embedder: the metric counts 2, 2, 1, 3, and calls the first two good.

    The second is a LoRA's of its own; a fifth shows one fox alone.
    """
    found = [(2, "good"), (2, "good"), (1, "missing"), (3, "extra"), (1, "good")]
    [one, *_] = some_rows()
    rows = []
    for i, (boxes, verdict) in enumerate(found):
        Image.new("RGB", (8, 8), (i * 50, 0, 0)).save(folder / f"{i}.png")
        row = replace(one, image=f"{i}.png", seed=i, boxes=boxes, verdict=verdict, embedder="net")
        variant = "plain" if i == 1 else "mudi"
        rows.append(replace(row, alone="a" if i == 4 else "", variant=variant))
    path = folder / "results.csv"
    write_rows(path, rows)
    return path


def by_hand_main(*words: object) -> None:
    by_hand.main(by_hand.parse_args([str(word) for word in words]))


def test_a_persons_verdicts_are_compared_with_the_metric_s(tmp_path, capsys):
    """Same count in 3 of 4; same success in 3 of 4; kappa 0.5 as above."""
    results = results_file(tmp_path)
    by_hand_main("sample", "--results", results, "--output", tmp_path / "hand", "--count", 9)
    template = tmp_path / "hand" / by_hand.VERDICTS
    drawn = [json.loads(text) for text in template.read_text().splitlines()]
    assert sorted(record["image"] for record in drawn) == [f"{i}.png" for i in range(4)]
    assert (tmp_path / "hand" / "sheet_00.png").is_file()
    assert "good     all subjects" in (tmp_path / "hand" / "rules.txt").read_text()
    said = {"0": (2, "good"), "1": (2, "good"), "2": (2, "good"), "3": (3, "extra")}
    filled = [{**r, **dict(zip(("count", "verdict"), said[r["image"][0]], strict=True))}
              for r in drawn]  # fmt: skip
    template.write_text("".join(json.dumps(record) + "\n" for record in filled))
    capsys.readouterr()
    by_hand_main("compare", "--results", results, "--verdicts", template)
    assert capsys.readouterr().out == (
        "net: 4 pictures; the same count in 75%, the same success in 75% (kappa 0.50); "
        "good by hand 75%, by the metric 50%\n"
        "mudi: by hand 67% [0%, 100%] of 3 pictures are good\n"
        "plain: by hand 100% [100%, 100%] of 1 pictures are good\n"
    )
    second = tmp_path / "second.jsonl"  # of another mind about one, and of no mind about one
    other = [{**r, "verdict": "mixed"} if r["image"] == "0.png" else r for r in filled]
    other = [r for r in other if r["image"] != "2.png"]
    second.write_text("".join(json.dumps(record) + "\n" for record in other))
    by_hand_main("compare", "--results", results, "--verdicts", template, second)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == str(template) and told[4] == str(second)
    assert told[-1] == (  # agree on 2 of 3; by chance on 2/3 · 1/3 + 1/3 · 2/3 = 4/9
        f"{template} and {second}: 3 pictures; the same count in 100%, the same success in 67% "
        "(kappa 0.40); good 2 and 1, by both 1"
    )
    template.write_text(json.dumps(filled[0]) + "\n")
    more = ("--output", tmp_path / "more", "--verdicts", template)
    by_hand_main("sample", "--results", results, *more)
    again = [
        json.loads(text) for text in (tmp_path / "more/verdicts.jsonl").read_text().splitlines()
    ]
    assert {record["image"] for record in again} == {r["image"] for r in filled[1:]}


def test_ways_of_making_pictures_are_compared_on_the_same_prompts_and_seeds(tmp_path, capsys):
    """Of three shots a third way lacks one; by hand a is right in both of the rest, b in one."""
    [one, *_] = some_rows()
    rows = []
    for variant, shots in (("a", "012"), ("b", "012"), ("c", "02"), ("d", "012")):
        for shot in shots:
            name = f"{variant}/{shot}.png"
            (tmp_path / variant).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / name)
            seed = int(shot) + 7 * (variant == "b")  # as of a kept candidate
            rows.append(replace(one, image=name, seed=seed, variant=variant, embedder="net"))
    write_rows(tmp_path / "results.csv", rows)
    few = ("--results", tmp_path / "results.csv", "--variants", "a", "b", "c")
    by_hand_main("sample", *few, "--output", tmp_path / "hand", "--count", 8)
    path = tmp_path / "hand/verdicts.jsonl"
    drawn = [json.loads(text) for text in path.read_text().splitlines()]
    assert {r["image"] for r in drawn} == {f"{v}/{shot}.png" for v in "abc" for shot in "02"}
    said = {"a": "good", "b": "mixed", "c": "mixed"}
    lines = [{**r, "count": 2, "verdict": said[r["image"][0]]} for r in drawn]
    lines += [{"image": "b/1.png", "count": 2, "verdict": "good"}]
    lines[[r["image"] for r in drawn].index("b/0.png")]["verdict"] = "good"
    path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    capsys.readouterr()
    by_hand_main("compare", *few, "--verdicts", path)
    told = capsys.readouterr().out.splitlines()[-5:]
    assert told == [
        "a: by hand 100% [100%, 100%] of 2 pictures are good",
        "b: by hand 67% [0%, 100%] of 3 pictures are good",
        "c: by hand 0% [0%, 0%] of 2 pictures are good",
        "a is ahead of b by +50% [+0%, +100%]",
        "a is ahead of c by +100% [+100%, +100%]",
    ]
    with pytest.raises(SystemExit, match="--variants e: there are a, b, c, d"):
        by_hand_main("sample", *few, "e")


@pytest.mark.parametrize(
    "record, told",
    [
        ({"image": "0.png", "count": None, "verdict": None}, "no line has a verdict"),
        ({"image": "0.png", "count": "2", "verdict": "good"}, '"count" must be a whole number'),
        ({"image": 0, "count": 2, "verdict": "good"}, '"image" and "verdict" must be texts'),
        ({"image": "9.png", "count": 2, "verdict": "good"}, "none of the 1 judged pictures"),
    ],
)
def test_verdicts_that_cannot_be_used_are_told(tmp_path, record, told):
    path = tmp_path / "verdicts.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(SystemExit, match=told):
        by_hand_main("compare", "--results", results_file(tmp_path), "--verdicts", path)


# The commands


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A random SDXL; detectors that always see one box and four; two embedders."""
    folder = tmp_path_factory.mktemp("models")
    tiny_sdxl().save_pretrained(folder / "sdxl")
    save_tiny_owlv2(folder / "one", grid=1)
    save_tiny_owlv2(folder / "detector", grid=2)
    save_tiny_dinov2(folder / "embedder_a")
    save_tiny_dinov2(folder / "embedder_b", seed=1)
    return folder


def metric_words(models, detector="one"):
    embedders = [str(models / name) for name in ("embedder_a", "embedder_b")]
    return ["--detector", str(models / detector), "--embedder", *embedders]


def words(models, out, *more):
    small = "--resolution 64 --max_train_steps 2 --train_batch_size 1 --rank 2 --lr_warmup_steps 0"
    prior = "--num_images 2 --segmenter foreground --threshold 0 --resolution 64"
    return [
        *("--pretrained_model_name_or_path", str(models / "sdxl"), "--output", str(out)),
        *metric_words(models),
        *("--metric_flags", f"--detector {models / 'detector'} --threshold 0.5"),
        *("--train_flags", small, "--prior_flags", f"{prior} --num_inference_steps 1"),
        *("--prompts", "a photo of {subjects}", "--steps", "2", *more),
    ]


def run(models, out, *more):
    reset_accelerate()
    compare_methods.main(compare_methods.parse_args(words(models, out, *more)))


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


ALL_METHODS = (
    *("--experiments", "methods", "losses", "--data_sets", "two_foxes", "--trainings", "0"),
    *("--alone_seeds", "1", "--num_seeds", "1"),
)


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    run(models, out, *ALL_METHODS)
    return out


def test_methods_are_trained_drawn_scored_and_drawn_up(finished):
    rows, summary = read(finished / "results.csv"), read(finished / "summary.csv")
    assert len(rows) == 9 * 3 * 2 and len({row["image"] for row in rows}) == 9 * 3
    assert {row["alone"] for row in rows} == {"", "a", "b"}
    assert {row["embedder"] for row in rows} == {"embedder_a", "embedder_b"}
    labels = [row["label"] for row in summary if row["embedder"] == "embedder_a"]
    methods_told = ["DreamBooth", "Cut-Mix", "Seg-Mix", "MuDI"]
    priors = [f"{label}, prior" for label in methods_told]
    assert labels == [*methods_told, *priors, "MuDI, plain MSE"]
    assert (finished / "sheet.png").is_file()
    for embedder in ("embedder_a", "embedder_b"):
        assert (finished / "plots" / embedder / "methods.png").is_file()


def test_every_training_had_the_flags_of_its_method(finished):
    def arguments(name):
        path = finished / "loras" / name / "two_foxes" / "0" / "run_arguments.json"
        return json.loads(path.read_text())

    keys = ("mix", "segmix_prob", "dco_beta")
    assert len(list((finished / "loras").iterdir())) == 7
    assert [arguments("dreambooth")[key] for key in keys] == ["segmix", 0, 1000]
    assert [arguments("cutmix")[key] for key in keys] == ["cutmix", 0.3, 1000]
    assert [arguments("segmix_prior")[key] for key in keys] == ["segmix", 0.3, 0]


def test_a_stopped_comparison_goes_on_without_doing_anything_twice(
    models, finished, tmp_path, monkeypatch
):
    """Stopped in the second LoRA's pictures; nine are there, and stay. The rest is as ever."""
    out = tmp_path / "out"
    plain, budget = making.write_image, iter(range(9))

    def stop_after_nine(*args):
        if next(budget, None) is None:
            raise KeyboardInterrupt
        return plain(*args)

    def times():
        made = (*out.glob("loras/*/*/*/*.safetensors"), *out.glob("pictures/*/*/*/*.png"))
        return {path: path.stat().st_mtime_ns for path in made}

    two_sets = ("--data_sets", "two_foxes", "cat_and_dog", "--num_seeds", "1", "--trainings", "0")
    monkeypatch.setattr(making, "write_image", stop_after_nine)
    with pytest.raises(KeyboardInterrupt):
        run(models, out, "--experiments", "gamma", *two_sets)
    monkeypatch.undo()
    kept = times()
    assert len(kept) == 2 + 9
    run(models, out, "--experiments", "gamma", *two_sets)
    assert times().items() >= kept.items() and len(times()) == 2 + 16
    one, other = (lora_of(folder / "loras/segmix/two_foxes/0") for folder in (out, finished))
    assert all(torch.equal(one[key], other[key]) for key in one)
    for variant in ("segmix_gamma_0", f"segmix_gamma_{recipe.GAMMA:g}"):
        shown = [
            folder / f"pictures/two_foxes/{variant}/0/00_000.png" for folder in (out, finished)
        ]
        again, before = (np.asarray(Image.open(path)).astype(int) for path in shown)
        assert abs(again - before).max() <= 1


def test_two_processes_add_pictures_to_finished_loras(models, finished):
    """No LoRA is made anew; each process makes its share of the units' pictures."""
    before = {path: path.stat().st_mtime_ns for path in finished.glob("loras/*/*/*/*.safetensors")}
    launch = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--main_process_port=0", "-m"]
    more = words(models, finished, *ALL_METHODS[:-1], "2")
    command = [*launch, "experiments.compare_methods", *more]
    subprocess.run(command, cwd=ROOT, env=offline(), check=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(read(finished / "results.csv")) == 9 * (2 + 2) * 2


def test_runs_are_drawn_up_as_one(finished, tmp_path, capsys):
    """Two halves of a run come to the whole; pictures of both and another run are refused."""
    rows = read_rows(finished / "results.csv")
    images = list(dict.fromkeys(row.image for row in rows))
    halves = [tmp_path / "one", tmp_path / "other"]
    for half, own in zip(halves, (images[::2], images[1::2]), strict=True):
        half.mkdir()
        for name in ("run.json", "metric.json"):
            shutil.copy(finished / name, half)
        write_rows(half / "results.csv", [row for row in rows if row.image in own])

    def gathered(*runs, more=()):
        given = [*map(str, runs), "--output", str(tmp_path / "all"), "--experiments", "methods"]
        gather.main(gather.parse_args([*given, *more]))

    gathered(*halves)
    assert "in no table of these --experiments and --gamma: cutmix_prior_gamma_0, " in (
        capsys.readouterr().out
    )
    gathered(*halves, more=["losses"])
    assert "in no table" not in capsys.readouterr().out
    assert read(tmp_path / "all/summary.csv") == read(finished / "summary.csv")
    assert (tmp_path / "all/tables.md").read_text() == (finished / "tables.md").read_text()
    with pytest.raises(SystemExit, match=r"00_000.png: in two of the runs, as \d+ rows are"):
        gathered(*halves, halves[0])
    settings = json.loads((halves[1] / "run.json").read_text())
    scored = json.loads((halves[1] / "metric.json").read_text())
    assert "@" in scored["measures"][0] and "references" not in scored
    assert len(settings["base_weights"]) == 4  # of files
    older = {key: value for key, value in settings.items() if key != "word_flags"}
    (halves[1] / "run.json").write_text(json.dumps(older))  # from before that flag
    gathered(*halves, more=["losses"])
    (halves[1] / "metric.json").write_text(json.dumps({**scored, "measures": ["one@0"]}))
    with pytest.raises(SystemExit, match=r"other/metric.json: scored otherwise .*one \(measures"):
        gathered(*halves)
    (halves[1] / "run.json").write_text(json.dumps({**settings, "steps": 5}))
    with pytest.raises(
        SystemExit, match=r"other/run.json: made otherwise than .*one \(steps was 2"
    ):
        gathered(*halves)
    with pytest.raises(SystemExit, match=r"results.csv: no such file"):
        gathered(tmp_path)


def test_another_training_into_the_same_folder_is_refused(models, finished):
    with pytest.raises(SystemExit, match=r"made otherwise; .* \(steps was 2 and is"):
        run(models, finished, *ALL_METHODS, "--steps", "3")
    settings = json.loads((finished / "run.json").read_text())
    del settings["word_flags"]  # as a run from before that flag
    (finished / "run.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match=r"made otherwise; .* \(word_flags was .* and is '--w"):
        run(models, finished, *ALL_METHODS, "--word_flags=--word_learning_rate 1")


def test_a_base_of_other_weights_is_refused_in_the_same_folder(models, finished):
    path = next(models.glob("sdxl/unet/*.safetensors"))
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(SystemExit, match=r"made otherwise; .* \(base_weights was "):
            run(models, finished, *ALL_METHODS)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    "more, told",
    [
        (["--num_seeds", "0"], "--num_seeds 0: must be 1 or more"),
        (["--quick", "--trainings", "5"], "--quick has its own --trainings; leave one of them out"),
        (["--prompts", "two foxes"], '--prompts "two foxes": no {subjects}'),
        (["--detector", "no/such/folder"], "--detector no/such/folder: no such folder"),
        (["--experiments", "subjects"], "nothing to do: no data set suits --experiments subjects"),
        (["--device", "teapot"], "--device teapot: "),
        (["--data_sets", "four_foxes"], "four_foxes: no such folder"),
        (["--train_flags", "--rank 0"], "--rank 0: must be 1 or more"),
        (["--prior_dir", "/nowhere"], "--prior_dir: no /nowhere/two_foxes/class_metadata.jsonl"),
    ],
)
def test_bad_flags_are_told_before_anything_is_trained(models, tmp_path, more, told):
    with pytest.raises(SystemExit) as stopped:
        run(models, tmp_path, *ALL_METHODS, *more)
    assert told in str(stopped.value)
    assert not (tmp_path / "loras").exists()


def test_constructed_pictures_are_scored_by_kind(tmp_path):
    """Colours alone, on whole pictures, tell a picture that lacks a subject from a right one."""
    flags = ["--output", str(tmp_path), "--pairs", "two_foxes", "--num_images", "2"]
    plain = ["--detector", "foreground", "--embedder", "colours", "--metric_flags="]
    reset_accelerate()
    check_metric.main(check_metric.parse_args([*flags, *plain]))
    table = {record["kind"]: record for record in read(tmp_path / check_metric.TABLE)}
    assert list(table) == list(check_metric.KINDS)
    assert table["both"]["above"] == "" and 0 <= float(table["one missing"]["above"]) <= 1
    assert {record["pictures"] for record in table.values()} == {"2"}
    assert (tmp_path / check_metric.SHEET).is_file()
