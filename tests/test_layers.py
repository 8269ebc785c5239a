"""Who may import whom: down only, and no wing another (mudi/__init__.py draws the floors)."""

import ast
import tomllib
from pathlib import Path

import pytest
from helpers import ROOT, SCRIPT_FOLDERS

SHARED, GROUND, METHOD, BACKBONES, WING, METRIC, CHOICE, TOP = range(8)
FLOORS = {
    "comfyui": SHARED,  # has to work where there is no mudi
    "mudi.ground": GROUND,
    "mudi": METHOD,
    "mudi.backbones": BACKBONES,
    "mudi.training": WING,
    "mudi.masks": WING,
    "mudi.pictures": WING,
    "detect_and_compare": METRIC,
    "mudi.best_of": CHOICE,
    "mudi.loop": TOP,
    "mudi.preview": TOP,
    "mudi.merge_lora": TOP,
    "mudi.studio": TOP,
}


def room(module: str) -> str | None:
    """Return the longest key of FLOORS that a module's name begins with; None for libraries."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in FLOORS), None)


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = sorted(
    [
        *(ROOT / "comfyui").rglob("*.py"),
        *(ROOT / "mudi").rglob("*.py"),
        *(ROOT / "detect_and_compare").glob("*.py"),
    ]
)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down_only(path):
    own = room(module_of(path))
    assert own is not None
    for module in imported(path):
        other = room(module)
        if other is not None and other != own:
            assert FLOORS[other] < FLOORS[own], f"{module_of(path)} imports {module}"


def test_the_rule_sees_what_is_wrong(tmp_path):
    """An upward and a sideways import, in the forms that code uses."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import mudi.training.args\ndef f():\n    from mudi import segmix, preview\n")
    assert {room(m) for m in imported(wrong)} == {"mudi.training", "mudi", "mudi.preview"}
    assert room("mudi.metadata.Photo") == "mudi" and room("torch.nn") is None


def test_the_top_is_not_imported_from_below():
    """Scripts and what measures them import the package; the package never them."""
    tops = {"mini", "experiments", "benchmarks", "inference", "generate_masks", "generate_prior"}
    for path in FILES:
        assert not {module.split(".")[0] for module in imported(path)} & tops, path


ONLY_FOR_SOME_FLAGS = set("bitsandbytes openai prodigyopt tensorboard torchao wandb".split())


def test_what_only_some_flags_need_is_imported_when_they_are_given():
    """Inside functions, so that a run starts without it."""
    needed = set()
    scripts = [path for folder in SCRIPT_FOLDERS for path in Path(folder).glob("*.py")]
    for path in [*FILES, *scripts]:
        roots = {module.split(".")[0] for module in imported(path)}
        needed |= roots & ONLY_FOR_SOME_FLAGS
        tree = ast.parse(path.read_text())
        at_start = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in at_start for alias in node.names}
        names |= {node.module or "" for node in at_start if isinstance(node, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in names} & ONLY_FOR_SOME_FLAGS, path
    assert needed >= {"bitsandbytes", "openai", "prodigyopt", "torchao", "wandb"}


def test_what_is_installed_imports_nothing_that_is_not():
    """Root scripts, tests and experiments are there in a checkout only, and on its path."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = settings["tool"]["setuptools"]["packages"]
    here = {path.stem for path in ROOT.glob("*.py")} | {
        path.name for path in ROOT.iterdir() if path.is_dir() and list(path.glob("*.py"))
    }
    left_out = here - {package.split(".")[0] for package in packages}
    assert {"generate_prior", "experiments", "benchmarks", "tests"} <= left_out
    for package in packages:
        for path in (ROOT / package.replace(".", "/")).glob("*.py"):
            assert not {module.split(".")[0] for module in imported(path)} & left_out, path
