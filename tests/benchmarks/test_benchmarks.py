"""The benchmarks run, write what they say, and their sums are right; no speed is asserted."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training import reset_accelerate

from benchmarks import (
    bases,
    bench_data,
    bench_dnc,
    bench_infer,
    bench_memory,
    bench_processes,
    bench_step,
    photos,
    watch,
)
from benchmarks.parts import GIB, REST, Cost, Meter, Parts, host_memory, swapped
from benchmarks.published import DINOV2, FLUX, KLEIN, OWLV2, SDXL, ZIMAGE, Network
from mini.tiny import FAMILIES
from mudi.images import load_mask, load_rgb
from mudi.metadata import load_subjects

CPU = torch.device("cpu")
SHORT = ["--turns=2", "--steps=1"]


def run(module, path: Path, *words: str) -> dict:
    """Run a benchmark on the CPU at size tiny, unless the words say otherwise; return its JSON."""
    reset_accelerate()
    module.main(module.parse_args([*"--size tiny --device cpu --json".split(), str(path), *words]))
    return json.loads(path.read_text())


class Clock:
    """Stands in for a meter: each reading is a second later than the last."""

    def read(self) -> Cost:
        return Cost(seconds=1.0)


def test_every_moment_is_charged_once_to_the_innermost_part():
    parts = Parts(Clock())
    with parts.part("outer"):  # rest: 1
        with parts.part("inner"):  # outer: 1
            pass  # inner: 1
    # outer: 1 more
    assert {name: cost.seconds for name, cost in parts.lap().items()} == {
        REST: 2.0, "outer": 2.0, "inner": 1.0,
    }  # fmt: skip
    assert parts.lap() == {REST: Cost(1.0)}
    parts.meter = None
    assert parts.wrap("x", abs)(-3) == 3
    assert parts.lap() == {}


def test_costs_add_seconds_and_keep_the_peak():
    both = Cost(1.0, 0.5, peak=7, left=3).then(Cost(2.0, 0.25, peak=5, left=4))
    assert both == Cost(3.0, 0.75, peak=7, left=4)


def test_swapped_attributes_come_back_and_unknown_ones_fail():
    with swapped(math, pi=3):
        assert math.pi == 3
    assert round(math.pi, 4) == 3.1416
    with pytest.raises(AttributeError), swapped(math, no_such_name=1):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_the_process_sees_what_was_freed_again():
    host_memory()
    start = host_memory()[1]
    block = torch.ones(GIB // 16)  # 256 MiB
    del block
    peak, now = host_memory()
    assert peak - start > 0.2 * GIB
    assert now - start < 0.1 * GIB
    assert host_memory()[0] - start < 0.1 * GIB  # the peak was reset


@pytest.mark.parametrize(
    "network",
    [*SDXL.values(), *FLUX.values(), *KLEIN.values(), OWLV2, DINOV2],
    ids=lambda n: n.kind.__name__,
)
def test_published_configurations_have_the_published_numbers_of_parameters(network):
    model = bases.random_network(network, torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == network.parameters
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_sdxl_and_flux_are_as_large_as_everyone_says():
    assert round(SDXL["unet"].parameters / 1e9, 3) == 2.567
    assert round(FLUX["transformer"].parameters / 1e9, 1) == 11.9
    assert round(KLEIN["transformer"].parameters / 1e9, 2) == 3.88


def test_made_photos_are_a_legal_data_folder(tmp_path):
    folder = photos.write_folder(tmp_path, 0.01, photos=4, subjects=3, distinct=2)
    subjects = load_subjects(folder, min_subjects=2)
    assert [len(subjects.photos_of(subject)) for subject in subjects.names] == [4, 4, 4]
    assert (folder / "a0003.jpg").is_symlink()
    photo = subjects.photos[0]
    assert load_rgb(photo.image).size == photos.size_of(0.01)
    assert 0.1 < load_mask(photo.mask).mean() < 0.6
    assert photos.size_of(12.2) == (4032, 3024)


@pytest.mark.parametrize("family", ["sdxl", "flux", "klein", "zimage"])
def test_the_parts_of_a_step_add_up_and_the_floor_has_the_networks_own(tmp_path, family):
    words = [f"--family={family}", *SHORT, "--gradient_accumulation_steps=2"]
    record = run(bench_step, tmp_path / "step.json", *words)
    assert {"date", "torch", "device"} <= record["machine"].keys()
    default, cached = record["rows"]
    for row in (default, cached):
        assert sum(row["parts"].values()) == pytest.approx(row["step_with_clock"])
        assert row["data_share"] == pytest.approx(row["parts"]["data"] / row["step_with_clock"])
        spent = {name for name, seconds in row["parts"].items() if seconds > 0}
        with_reference = {watch.REFERENCE} if family == "sdxl" else set()  # DCO is SDXL's default
        others = {*watch.STEP_PARTS, REST} - {watch.REFERENCE}
        assert spent == others | with_reference
        floor = {name for name, seconds in row["floor_parts"].items() if seconds > 0}
        with_vae = {watch.VAE} if row["variant"] == "default" else set()
        assert floor == {watch.FORWARD, watch.BACKWARD} | with_reference | with_vae
        assert row["ratio"] > 0
        assert row["passes_a_step"] == 2
        assert row["skipped_steps"] == 0


class Seen:
    """Collects the losses of a run and whether its floor left the gradients alone."""

    def __init__(self, with_floor: bool):
        self.losses: list[float] = []
        self._with_floor = with_floor

    def __call__(self, running, batches):
        floor = watch.Floor(running)
        for batch in batches:
            with floor.recording():
                yield batch
            if self._with_floor:
                floor.run(Parts(Meter(CPU)), 2, with_vae=True)
        self.losses = [p.sum().item() for p in running.training.parameters]


def test_measuring_the_floor_does_not_change_the_training(tmp_path, sdxl_backbone):
    ends = []
    for with_floor in (False, True):
        reset_accelerate()
        seen = Seen(with_floor)
        words = sdxl_backbone.flags(tmp_path / "out", "--max_train_steps=2")
        watch.run("sdxl", [*words, "--gradient_accumulation_steps=2"], Parts(), seen, True)
        ends.append(seen.losses)
    assert ends[0] == ends[1]
    assert not hasattr(sdxl_backbone.script.train, "__wrapped__")  # everything is put back


def test_caches_are_full_when_the_clock_starts(tmp_path):
    """With no collages the VAE is never asked, as after the first epochs."""
    words = ["--variant=cached", *SHORT, "--segmix_prob=0"]
    (row,) = run(bench_step, tmp_path / "step.json", *words)["rows"]
    assert row["parts"][watch.VAE] < 0.5 * row["parts"][watch.FORWARD]


def small(networks: dict[str, Network], pipeline) -> dict[str, Network]:
    """The networks with the configurations of a tiny pipeline's."""
    return {
        name: replace(network, config=getattr(pipeline, name).config)
        for name, network in networks.items()
    }


def test_size_real_builds_its_networks_in_place_of_loading_them(tmp_path, monkeypatch):
    """All but the networks' sizes is as on a GPU; int8 stands in for nf4, which needs one."""
    for family, networks in (("sdxl", SDXL), ("flux", FLUX), ("klein", KLEIN), ("zimage", ZIMAGE)):
        tiny = small(networks, FAMILIES[family]())
        monkeypatch.setitem(bases.PUBLISHED, family, tiny)
    for row, words in (
        ("sdxl_lean", []),
        ("flux", ["--quantize_base=int8"]),
        ("klein", []),
        ("zimage", []),
    ):
        words += ["--size=real", f"--row={row}", "--steps=1", "--no-imports", "--resolution=64"]
        (result,) = run(bench_memory, tmp_path / f"{row}.json", *words)["rows"]
        assert result["peak"] == max(part["peak"] for part in result["parts"].values()) > 0
        parts = list(result["parts"])
        assert parts[0] == "start"
        assert parts.index("prompts encoded") < parts.index("network weights")
        assert {f"step: {name}" for name in watch.NETWORK_PARTS[1:]} <= set(parts)
        told = sum(result["to_first_step"].values())
        assert result["to_first_step_seconds"] == pytest.approx(told)
        assert not set(watch.LOADED) & result["to_first_step"].keys()
    rows = run(bench_infer, tmp_path / "infer.json", "--size=real", *INFER_WORDS)["rows"]
    assert {row["steps"] for row in rows} == {1}


INFER_WORDS = "--steps=1 --rounds=1 --batch_size=2 --resolution=64".split()


def test_rows_that_need_a_gpu_say_so(tmp_path):
    with pytest.raises(SystemExit, match=r"not measured.*nf4"):
        run(bench_memory, tmp_path / "x.json", "--row=flux_nf4")


def test_pictures_a_second(tmp_path):
    for family in ("sdxl", "flux", "klein", "zimage"):
        words = [f"--family={family}", *INFER_WORDS]
        rows = run(bench_infer, tmp_path / "infer.json", *words)["rows"]
        told = [(row["gamma"], row["batch_size"]) for row in rows]
        assert told == [(0.0, 1), (0.0, 2), (bench_infer.GAMMA, 1), (bench_infer.GAMMA, 2)]
        assert all(row["pictures_a_second"] > 0 for row in rows)


@pytest.mark.parametrize("size", ["tiny", "mini"])
def test_detect_and_compare_batched_and_one_at_a_time(tmp_path, size):
    words = ["--size", size, "--pictures=3", "--rounds=1", "--batch_size=3"]
    rows = run(bench_dnc, tmp_path / "dnc.json", *words)["rows"]
    assert [row["batch_size"] for row in rows] == [1, 3]
    assert rows[0]["gain"] == 1


def test_samples_a_second_and_how_cost_grows(tmp_path):
    (row,) = run(bench_data, tmp_path / "data.json", "--samples=4")["rows"]
    assert row["num_photos"] == 10
    assert row["mixed_a_second"] == pytest.approx(1 / row["mixed_cpu"])
    rows = run(bench_data, tmp_path / "grow.json", "--grow", "photos", "subjects", "--samples=4")
    told = [(r["varied"], r["value"], r["num_photos"]) for r in rows["rows"]]
    assert told == [("photos", 2, 4), ("photos", 6, 12), ("subjects", 2, 10), ("subjects", 3, 15)]


def test_growth_over_what_a_step_depends_on(tmp_path):
    words = ["--sweep", "rank", "subjects", *SHORT]
    rows = run(bench_step, tmp_path / "sweep.json", *words)["rows"]
    told = [(row["varied"], row["value"]) for row in rows]
    assert told == [("rank", 2), ("rank", 4), ("subjects", 2), ("subjects", 3)]
    assert rows[1]["parameters"] > rows[0]["parameters"]


def test_two_processes_measure_together(tmp_path):
    """As the command launches them; one launch only, as importing the libraries takes long."""
    words = "--size tiny --device cpu --turns 2 --steps 1 --json x".split()
    row = bench_processes.launch(bench_processes.parse_args(words), processes=2, threads=1)
    assert row["pictures_a_second"] == pytest.approx(2 / row["step"])
    alone = {**row, "against_one": 1.0, "floor_slower": 1.0, "step_slower": 1.0}
    both = {**row, "against_one": 1.6, "floor_slower": 1.2, "step_slower": 1.5}
    told = bench_processes.show([alone, both])
    assert "2 processes: 1.60 times one" in told
    assert "the rest 1.25 times" in told
