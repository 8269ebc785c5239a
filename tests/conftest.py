from pathlib import Path

import pytest
from helpers import NAMES, DataFolder
from hypothesis import settings

# Two cores shared by other work: an example's time says nothing about the code
settings.register_profile("mudi", deadline=None, derandomize=True)
settings.load_profile("mudi")


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """Two subjects with three photos each: lines 2 to 4 are a's, 5 to 7 are b's."""
    return DataFolder(tmp_path / "pair", {"a": NAMES["a"], "b": NAMES["b"]})


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SDXL pipeline's folder."""
    from mini.tiny import tiny_sdxl as build  # the pure tests need no torch

    path = tmp_path_factory.mktemp("models") / "sdxl"
    build().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def run_once(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run of four steps with everything switched on."""
    from training import train

    return train(
        tiny_sdxl,
        tmp_path_factory.mktemp("runs") / "once",
        "--max_train_steps 4 --checkpointing_steps 2 --save_steps 2 --output_kohya_format",
        "--gradient_accumulation_steps 2 --num_validation_images 1 --validation_epochs 1000",
        "--num_validation_inference_steps 2 --validation_prompt dog --report_to tensorboard",
    )
