"""Executes a notebook as a user would who edits its variables."""

import re
from pathlib import Path

import nbformat
from helpers import ROOT
from nbclient import NotebookClient

MOST_CELLS = 12


def execute(path: Path, **variables: str) -> nbformat.NotebookNode:
    """Run a notebook from the repository's root; `variables` are lines of it, as Python.

    Checks before that it is stored without outputs and is short.
    """
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(notebook.cells) <= MOST_CELLS
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(
        line.startswith(("def ", "class ")) for c in code for line in c.source.split("\n")
    )
    for name, value in variables.items():
        cells = [cell for cell in code if re.search(rf"(?m)^{name} = ", cell.source)]
        assert len(cells) == 1, f"{name} is set in {len(cells)} cells"
        cells[0].source = re.sub(
            rf"(?m)^{name} = .*$", lambda _, line=f"{name} = {value}": line, cells[0].source
        )
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    return notebook


def text_of(notebook: nbformat.NotebookNode) -> str:
    """Return what its cells printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def count_pictures(notebook: nbformat.NotebookNode) -> int:
    """Return how many pictures its cells showed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)
