"""Links between the documents lead somewhere."""

import re
from pathlib import Path

import pytest
from helpers import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
MADE = {"output"}  # by programs


def texts(suffix: str) -> list[Path]:
    """Return the checkout's files of a kind."""
    tops = [top for top in ROOT.iterdir() if not top.name.startswith(".") and top.name not in MADE]
    inside = [path for top in tops if top.is_dir() for path in top.rglob(f"*{suffix}")]
    return sorted([*inside, *(top for top in tops if top.suffix == suffix)])


DOCUMENTS = texts(".md")


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    titles = HEADING.findall(document.read_text(encoding="utf-8"))
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in kept}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = document.parent / place if place else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


COMMAND = re.compile(r"(?:python|launch)(?: --\S+)* (?:-m ([a-z_][\w.]*)|([\w/]+\.py))")
OURS = {path.stem if path.suffix else path.name for path in ROOT.iterdir()}


def begun_by(path: Path) -> set[Path]:
    """Return the files that the commands in a text start."""
    found = set()
    for module, script in COMMAND.findall(path.read_text(encoding="utf-8")):
        if script:
            beside = path.parent / script
            found.add(beside if beside.is_file() else ROOT / script)
        elif module.split(".")[0] in OURS:
            place = ROOT / module.rstrip(".").replace(".", "/")
            found.add(place / "__main__.py" if place.is_dir() else place.with_suffix(".py"))
    return found


def test_what_commands_start_does_something():
    """A file without its last lines would end at once, without a word."""
    files = set().union(*map(begun_by, [*DOCUMENTS, *texts(".py")]))
    assert {ROOT / "inference.py", ROOT / "mudi/loop/__main__.py"} < files
    for file in files:
        assert re.search(r'^if __name__ == "__main__":\n    ', file.read_text(), re.MULTILINE), file


DECLARED = re.compile(r"^    (\w+): [^=\n]+ = flag\(", re.MULTILINE)
MENTIONED = re.compile(r"(?<![\w-])--(?:no-)?([a-z]\w+)")
ELSEWHERE = {
    "help",
    "num_processes",  # of accelerate launch
    "compile",  # tried and not taken, as benchmarks/RESULTS.md tells
}


def test_flags_that_documents_name_exist():
    known = ELSEWHERE.union(*(DECLARED.findall(path.read_text()) for path in texts(".py")))
    for document in DOCUMENTS:
        assert set(MENTIONED.findall(document.read_text(encoding="utf-8"))) <= known, document
