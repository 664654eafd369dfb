"""The documentation as a site: README, docs and the benchmarks' reports, from where they lie in the repository.

Built by ``bash docs/build.sh``.
"""

import re
import sys
from pathlib import Path
from shutil import copyfile
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import otter_losses  # noqa: E402
from docs.site.contents import toctrees  # noqa: E402
from otter_losses import audit, diagnostics, functional  # noqa: E402

torch.set_num_threads(1)  # the gallery's matrices are small

project = "otter_losses"
author = "otter_losses developers"
copyright = "2026, otter_losses developers"
release = version = otter_losses.__version__

root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "docs/*.md",
    "docs/reference/*.md",
    "docs/gallery_built/*.rst",
    "benchmarks/**.md",
]
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_gallery.gen_gallery",
    "docs.site.mathml",
]  # fmt: skip
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "py:obj"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
toc_object_entries = False
suppress_warnings = ["myst.header"]  # reports that a larger one includes start at a lower heading
copybutton_exclude = ".linenos, .gp"

sphinx_gallery_conf = {
    "examples_dirs": "docs/gallery",
    "gallery_dirs": "docs/gallery_built",
    "ignore_pattern": r"made_up\.py",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 3600,
    "remove_config_comments": True,
}

html_theme = "furo"
html_title = f"otter_losses {release}"
html_static_path = [str(HERE / "static")]
html_css_files = ["style.css"]
html_show_sphinx = False
html_copy_source = False


def prepare(app: Any, page: str, source: list[str]) -> None:
    """To the start page: what the index of the docs lists becomes the navigation. The index itself and the reports are linked to.

    Links to the gallery's scripts, which a reader of the repository can open, lead to what they made.
    """
    source[0] = re.sub(
        r"(\]\((?:docs/)?gallery)/(?:(\w+)\.py)?\)", lambda link: f"{link[1]}_built/{link[2] or 'index'}.rst)", source[0]
    )
    if page == root_doc:
        source[0] += toctrees(ROOT / "docs" / "README.md")
    elif page == "docs/README" or page.startswith("benchmarks/"):
        source[0] = f"---\norphan: true\n---\n\n{source[0]}"


PUBLIC = {name for module in (otter_losses, functional, audit, diagnostics) for name in module.__all__} | {"PairLoss"}


def link(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Public names in docstrings, whatever their module, and pages that they mention."""
    for number, line in enumerate(lines):
        line = re.sub(rf"(?<![`:])`((?:{'|'.join(PUBLIC)})(?:\.\w+)?)(?:\(\))?`(?!`)", r"`.\1`", line)
        lines[number] = re.sub(r"docs/(\w+)\.md", r":doc:`/docs/\1`", line)


def shorten_signature(
    app: Any, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """The whole batch by its name."""
    return signature and re.sub(r"BatchShard\([^)]*\)", "WHOLE_BATCH", signature), returns


def add_index(app: Any, error: Exception | None) -> None:
    if error is None:
        copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Any) -> None:
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", link)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("build-finished", add_index)
