"""The package that docs/extending.md builds, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from process_fixtures import ROOT

PAGE = ROOT / "docs" / "extending.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """The page's code in one language."""
    return [code for name, code in _BLOCK.findall(PAGE.read_text(encoding="utf-8")) if name == language]


def write_page_files(folder: Path) -> None:
    """Every block that begins with the name of a file, as that file."""
    for language in ("python", "yaml"):
        for code in blocks(language):
            path = folder / code.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")
