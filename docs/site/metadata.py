"""A package's page: README with links that work where there are no files beside it, and the project's addresses.

They need the repository's address, which its CI knows and a clone does not: ``REPOSITORY_URL=https://... python -m build``.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURES = (".png", ".svg")


class Page(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        address = os.environ.get("REPOSITORY_URL", "").rstrip("/")
        metadata["urls"] = {"Paper": "https://arxiv.org/abs/2112.09445"}
        if address:
            text = absolute(text, address)
            metadata["urls"] |= {
                "Repository": address,
                "Documentation": f"{address}/blob/main/docs/README.md",
                "Changelog": f"{address}/blob/main/CHANGELOG.md",
                "Issues": f"{address}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute(text: str, address: str) -> str:
    """Markdown whose links to files lead into the repository; pictures come raw."""

    def full(link: re.Match[str]) -> str:
        kind = "raw" if link[1].endswith(PICTURES) else "blob"
        return f"]({address}/{kind}/main/{link[1]})"

    return re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", full, text)
