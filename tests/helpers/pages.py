"""The README and the pages of docs, and what is fenced in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = {"console", "json", "python", "slurm", "text", "yaml"}
_OPENING = re.compile(r"^```(\w*)(?: file=(\S+))?$")
_MARKER = re.compile(r"^<!-- needs: ([\w, ]+) -->$")


def pages() -> list[Path]:
    """Every Markdown page for users."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Fence:
    """A fenced block: where its text begins, the file that it is to be saved as, and what its marker says it needs."""

    page: Path
    line: int
    language: str
    file: str | None
    needs: frozenset[str]
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fences(page: Path) -> Iterator[Fence]:
    """The fenced blocks of a page in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = _OPENING.match(lines[number])
        if not opening:
            assert not lines[number].startswith("```"), f"{page}:{number + 1}: a fence of another form"
            number += 1
            continue
        end = lines.index("```", number + 1)
        marker = _MARKER.match(lines[number - 1]) if number else None
        needs = frozenset(marker[1].replace(",", " ").split()) if marker else frozenset()
        yield Fence(page, number + 2, opening[1], opening[2], needs, "\n".join(lines[number + 1 : end]))
        number = end + 1


def commands(fence: Fence) -> list[str]:
    """The commands of a console block, one a line; a backslash at the end goes on with the next line."""
    return [line for line in re.sub(r"\\\n\s*", " ", fence.text).splitlines() if line.strip()]
