import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from endpoint import Endpoint
from helpers import CLASSES, NAMES, DataFolder
from hypothesis import settings

WANTS_GPU = "wants a GPU"

# Two cores shared by other work: an example's time says nothing about the code
settings.register_profile("mudi", deadline=None, derandomize=True)
settings.load_profile("mudi")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs from all but a run of the tests that are marked for them."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or (why := _no_gpu(config)) is None:
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason=why))


def _no_gpu(config: pytest.Config) -> str | None:
    """Say why tests for a GPU can't run, or return None."""
    if config.option.markexpr != "gpu":
        return f"{WANTS_GPU}: run make test-gpu"
    import torch  # the pure tests need none

    return None if torch.cuda.is_available() else f"{WANTS_GPU}, and there is none"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if count := sum(WANTS_GPU in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(f"not run for want of a GPU: {count} tests (make test-gpu)")


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """Two subjects with three photos each: lines 2 to 4 are a's, 5 to 7 are b's."""
    return DataFolder(tmp_path / "pair", {"a": NAMES["a"], "b": NAMES["b"]})


@pytest.fixture
def prior_folder(tmp_path: Path) -> Path:
    """A prior set whose ids are the example's."""
    return DataFolder(
        tmp_path / "prior",
        {"a": CLASSES["a"], "b": CLASSES["b"]},
        filename="class_metadata.jsonl",
    ).path


def _built(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mini.tiny import FAMILIES  # the pure tests need no torch

    path = tmp_path_factory.mktemp("models") / family
    FAMILIES[family]().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def sdxl_backbone(tmp_path_factory: pytest.TempPathFactory):
    """The SDXL script on a random SDXL."""
    from training import sdxl_on

    return sdxl_on(_built("sdxl", tmp_path_factory))


@pytest.fixture(scope="session")
def flux_backbone(tmp_path_factory: pytest.TempPathFactory):
    """The FLUX script on a random FLUX."""
    from training import flux_on

    return flux_on(_built("flux", tmp_path_factory))


@pytest.fixture(scope="session")
def klein_backbone(tmp_path_factory: pytest.TempPathFactory):
    """The FLUX.2-klein script on a random FLUX.2-klein."""
    from training import klein_on

    return klein_on(_built("klein", tmp_path_factory))


@pytest.fixture(scope="session")
def zimage_backbone(tmp_path_factory: pytest.TempPathFactory):
    """The Z-Image script on a random Z-Image."""
    from training import zimage_on

    return zimage_on(_built("zimage", tmp_path_factory))


@pytest.fixture(scope="session", params=["sdxl", "flux", "klein", "zimage"])
def backbone(request: pytest.FixtureRequest):
    """Any script, for what all must do alike."""
    return request.getfixturevalue(f"{request.param}_backbone")


@pytest.fixture(scope="session")
def run_once(backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run of four steps with everything switched on."""
    return backbone.train(
        tmp_path_factory.mktemp("runs") / "once",
        "--max_train_steps 4 --checkpointing_steps 2 --save_steps 2",
        "--gradient_accumulation_steps 2 --num_validation_images 1 --validation_epochs 1000",
        "--num_validation_inference_steps 2 --validation_prompt dog --report_to tensorboard",
        "--dco_beta 1000",
    )


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.01,))
    thread.start()
    yield endpoint
    endpoint.closing.set()
    endpoint.server.shutdown()
    thread.join()
    endpoint.server.server_close()
