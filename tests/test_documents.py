"""Links between the documents lead somewhere."""

import re
from pathlib import Path

import pytest
from helpers import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
MADE = {"output"}  # by programs
DOCUMENTS = sorted(
    path
    for top in ROOT.iterdir()
    if not top.name.startswith(".") and top.name not in MADE
    for path in (top.rglob("*.md") if top.is_dir() else [top])
    if path.suffix == ".md"
)


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
