"""Started by test_devices.py where a GPU seems to be there: trains, makes a picture, scores it.

python cpu_beside_gpu.py OUTPUT SDXL FLUX OWLV2 DINOV2
"""

import shutil
import sys
from pathlib import Path

import torch
from training import EXAMPLE, flux_on, reset_accelerate, sdxl_on

import inference
from detect_and_compare import __main__ as metric

STEPS = "--max_train_steps 2 --checkpointing_steps 2 --gradient_accumulation_steps 2"


def work(output: Path, bases: list[Path], owlv2: Path, dinov2: Path) -> None:
    """Write a LoRA and a picture of each base, then the scores of the pictures."""
    pictures = output / "pictures"
    pictures.mkdir(parents=True)
    for backbone_on, base in zip((sdxl_on, flux_on), bases, strict=True):
        backbone = backbone_on(base)
        name = backbone.denoiser
        lora = backbone.train(output / name, STEPS, "--dataloader_num_workers 1")
        reset_accelerate()
        words = f"--lora={lora} --instance_data_dir={EXAMPLE} --output_dir={output / 'made' / name}"
        more = "--num_images=1 --width=64 --height=64 --steps=1 --gamma=0.5 --seed=3"
        prompt = "--prompt=a photo of a olis robot and a hta teddy bear"
        argv = [f"--pretrained_model_name_or_path={base}", *words.split(), *more.split(), prompt]
        inference.main(inference.parse_args(argv))
        shutil.copy(output / "made" / name / "000_000.png", pictures / f"{name}.png")
    reset_accelerate()
    words = f"--images={pictures} --references={EXAMPLE} --output={output / 'scores'}"
    models = f"--detector={owlv2} --threshold=0 --embedder={dinov2}"
    metric.main(metric.parse_args([*words.split(), *models.split()]))


if __name__ == "__main__":
    assert torch.cuda.is_available()
    places = [Path(word) for word in sys.argv[1:]]
    work(places[0], places[1:3], *places[3:])
