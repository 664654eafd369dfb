"""The navigation of the site: the headings of docs/README.md and the pages that it links to, in its order."""

import re
from pathlib import Path
from posixpath import normpath

GALLERY = "docs/gallery"


def toctrees(index: Path) -> str:
    """Hidden toctrees in MyST, one a heading."""
    sections: list[tuple[str, list[str]]] = []
    for line in index.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            sections.append((line[3:], []))
        for link in re.findall(r"\]\(([\w./-]+)\)", line) if sections else ():
            sections[-1][1].append(page_of(normpath(f"{index.parent.name}/{link}")))
    return "".join(_toctree(caption, pages) for caption, pages in sections)


def page_of(path: str) -> str:
    """The page of the site that shows a file: a script of the gallery by what it made."""
    if path == GALLERY:
        return f"{GALLERY}_built/index"
    return path.removesuffix(".md").removesuffix(".py").replace(f"{GALLERY}/", f"{GALLERY}_built/")


def _toctree(caption: str, pages: list[str]) -> str:
    return "\n".join(("", "", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""))
