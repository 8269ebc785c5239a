"""The script as users start it: `accelerate launch`, kills, two processes, a fresh process."""

import importlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SCRIPT_FOLDERS
from training import EXAMPLE, lora_of

from mudi.ground.files import REPLACED, TEMPORARY
from mudi.lora import KOHYA_WEIGHTS_NAME, WEIGHTS_NAME
from mudi.training.checkpoints import checkpoints, damage
from mudi.training.stats import STATS_NAME

MANY_KILLS = 8
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
TRANSFORMERS = """
--pretrained_model_name_or_path={base} --mixed_precision=bf16 --instance_data_dir={data}
--resolution=128 --learning_rate=3e-4 --train_batch_size=1
--gradient_accumulation_steps=4 --rank=32 --max_train_steps=3 --checkpointing_steps=20000
--save_steps=2 --validation_epochs 40 --lr_scheduler=constant --lr_warmup_steps=0 --seed=42
--output_dir={out} --report_to=wandb --wandb_name=pair --segmix_prob=0.3
--segmix_start_step=0 --gradient_checkpoint
"""
PUBLISHED = {
    "StableDiffusionXLPipeline": """
--instance_data_dir={data} --pretrained_model_name_or_path={base}
--pretrained_vae_model_name_or_path={base}/vae --output_dir={out} --report_to=wandb
--resolution=128 --train_batch_size=1 --gradient_accumulation_steps=2 --checkpointing_steps=20000
--max_train_steps=3 --validation_epochs=3 --save_steps=2 --lr_warmup_steps=0 --seed=42 --rank=32
--learning_rate=1e-4 --segmix_prob=0.3 --segmix_start_step=0 --relative_scale=0.0 --soft_alpha 1.0
--gradient_checkpoint
""",
    "FluxPipeline": f"{TRANSFORMERS} --caption_column=text --guidance_scale=1",
    "Flux2KleinPipeline": f"{TRANSFORMERS} --max_sequence_length 64",
    "ZImagePipeline": f"{TRANSFORMERS} --max_sequence_length 64",
}


def offline(**more: str) -> dict[str, str]:
    """The environment of a machine without a network."""
    quiet = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **quiet, **more}


def test_the_published_command_runs_from_any_folder_and_its_lora_loads_afresh(backbone, tmp_path):
    """`--gradient_checkpoint`, the published abbreviation, and wandb offline included.

    And nothing that it writes holds what its environment keeps secret.
    """
    out, base = tmp_path / "out", backbone.base
    published = PUBLISHED[backbone.pipeline_class.__name__]
    words = published.format(data=EXAMPLE, base=base, out=out).split()
    words.append("--validation_prompt=a photo of a olis robot and a hta teddy bear")
    words += ["--num_validation_inference_steps=1", "--num_validation_images=1"]
    words += ["--report_to=all", "--checkpointing_steps=2"]  # more to search for secrets
    secrets = {name: f"secret-of-{name}" for name in SECRETS}
    script = str(backbone.script.__file__)
    subprocess.run([*LAUNCH, script, *words], cwd=tmp_path, env=offline(**secrets), check=True)
    arguments = json.loads((out / "run_arguments.json").read_text())
    assert arguments["gradient_checkpointing"] is True
    [wandb_log] = out.glob("wandb/offline-run-*/*.wandb")
    assert (
        f"--output_dir={out}".encode() in wandb_log.read_bytes()
    )  # so arguments can be read in it
    assert list(out.glob("logs/*/events*")) and (out / "checkpoint-2/optimizer.bin").is_file()
    written = [path for path in out.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in written if b"secret-of-" in path.read_bytes()] == []

    fresh = f"""
import torch
from diffusers import {backbone.pipeline_class.__name__} as Pipeline
pipeline = Pipeline.from_pretrained({str(base)!r})
def picture():
    return pipeline(prompt="a olis robot", height=64, width=64, num_inference_steps=2,
                    output_type="np", generator=torch.Generator().manual_seed(0)).images
plain = picture()
pipeline.load_lora_weights({str(out)!r})
assert abs(picture() - plain).max() > 1e-5
pipeline.disable_lora()
assert abs(picture() - plain).max() == 0
"""
    subprocess.run([sys.executable, "-c", fresh], cwd=tmp_path, env=offline(), check=True)


def test_two_processes_draw_apart_and_end_with_one_lora(backbone, tmp_path):
    words = backbone.flags(
        tmp_path / "out", "--max_train_steps 2 --gradient_accumulation_steps 2 --dco_beta 0",
        "--checkpointing_steps 1 --train_text_encoder --num_validation_images 1",
        "--validation_prompt x --num_validation_inference_steps 1",
        "--learn_words --word_learning_rate 0.01" if backbone.denoiser == "unet" else "",
    )  # fmt: skip
    # accelerate's --cpu starts one process; its torchrun branch serves CPUs too
    launch = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    worker = [str(ROOT / "tests/two_processes.py"), backbone.script.__name__]
    path = os.pathsep.join(SCRIPT_FOLDERS)
    environment = offline(PYTHONPATH=path)
    subprocess.run([*launch, *worker, str(tmp_path), *words], env=environment, check=True)

    told = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["backend"] for rank in told] == ["gloo", "gloo"]
    assert told[0]["lora"] == told[1]["lora"]
    assert [len(rank["noise"]) for rank in told] == [4, 4]
    assert not set(told[0]["noise"]) & set(told[1]["noise"])
    alone = json.loads((tmp_path / "alone.json").read_text())
    together = [d for pair in zip(*(rank["draws"] for rank in told), strict=True) for d in pair]
    assert together == alone["draws"]  # nothing doubled, nothing left out
    assert (tmp_path / "out" / WEIGHTS_NAME).is_file()
    assert [p.name for p in checkpoints(tmp_path / "out")] == ["checkpoint-1", "checkpoint-2"]


def run_script(name: str, words: list[str]) -> None:
    """What a process of the kill test does; the forkserver has imported everything already."""
    torch.set_num_threads(1)
    script = importlib.import_module(name)
    with Path(os.devnull).open("w") as sys.stderr:
        script.main(script.parse_args(words))


@pytest.mark.parametrize("backbone", ["sdxl", "flux"], indirect=True)  # what it saves is shared
def test_a_run_killed_at_random_moments_resumes_every_time(backbone, tmp_path):
    """Ends with the weights of a run that nobody disturbed, and no half-written file on the way."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_segmix_lora_sdxl", "train_segmix_lora_flux"])
    rng = random.Random(backbone.denoiser)
    steps = "--max_train_steps 40 --checkpointing_steps 1 --save_steps 1"
    latest = "--resume_from_checkpoint latest --checkpoints_total_limit 2"
    calm, killed = tmp_path / "calm", tmp_path / "killed"

    def start(out: Path, *more: str) -> multiprocessing.Process:
        words = backbone.flags(out, steps, *more)
        process = context.Process(target=run_script, args=(backbone.script.__name__, words))
        process.start()
        return process

    undisturbed = start(calm)
    undisturbed.join()
    assert undisturbed.exitcode == 0
    last = kills = 0
    for _ in range(MANY_KILLS):
        process = start(killed, latest)
        wait_for_steps(process, killed, last + rng.randint(0, 3))
        time.sleep(rng.uniform(0.0, 0.15))  # the moment within a step, or within a write
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        check_complete(killed)
        assert last_step(killed) >= last  # never lost a finished state
        last = last_step(killed)
    else:
        process = start(killed, latest)
    process.join()
    assert process.exitcode == 0
    assert kills >= 3
    check_complete(killed)
    for name, value in lora_of(calm).items():
        assert value.equal(lora_of(killed)[name])
    assert not [p for p in killed.rglob("*") if p.name.startswith((TEMPORARY, REPLACED))]
    told = [[(line["step"], line["loss"]) for line in stats_of(out)] for out in (calm, killed)]
    assert [step for step, _ in told[0]] == list(range(1, 41))
    assert told[0] == told[1]


def stats_of(out: Path) -> list[dict]:
    path = out / STATS_NAME
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def last_step(out: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in checkpoints(out)), default=0)


def wait_for_steps(process: multiprocessing.Process, out: Path, step: int) -> None:
    """Return when the run has done that many steps, or has ended."""
    while process.is_alive() and last_step(out) < step:
        time.sleep(0.01)


def check_complete(out: Path) -> None:
    """Every file under its final name is whole, at whatever moment we look."""
    for folder in [*checkpoints(out), *out.glob("save-*")]:
        assert lora_of(folder)
        if folder.name.startswith("checkpoint-"):
            assert {p.name for p in folder.iterdir()} >= {
                "optimizer.bin", "schedule.json", "state.json", "random_states_0.pkl",
            }  # fmt: skip
            assert damage(folder) is None
    assert len(stats_of(out)) >= last_step(out)
    for kohya in out.glob(f"save-*/{KOHYA_WEIGHTS_NAME}"):
        assert kohya.stat().st_size > 1000
