"""Print the lowest supported version of every dependency, a requirement a line, as `pyproject.toml` bounds them.

    python .ci/lowest_versions.py serve eval

Named extras are added. What develops and tests the project (`dev`) comes as pip resolves it.
"""

import re
import sys
from pathlib import Path

import tomllib

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def bound(requirement: str) -> tuple[str, str, str]:
    """The name with its extras, the lowest version and the marker of `name[extra]>=1.2,<3; marker`."""
    found = re.match(r"([\w.-]+(?:\[[\w,]+\])?)>=([\w.]+)[^;]*(;.*)?$", requirement)
    if found is None:
        raise SystemExit(f"{requirement} has no lower bound")
    return found[1], found[2], found[3] or ""


def lowest(requirements: list[str]) -> list[str]:
    """A line for each package; of two bounds of one, the higher."""
    bounds: dict[str, tuple[str, str, str]] = {}
    for name, version, marker in map(bound, requirements):
        package = name.split("[")[0].lower()
        _, other, _ = bounds.get(package, ("", "0", ""))
        if [int(part) for part in version.split(".")] >= [int(part) for part in other.split(".")]:
            bounds[package] = name, version, marker
    return [f"{name}=={version}{marker}" for name, version, marker in bounds.values()]


if __name__ == "__main__":
    extras = PROJECT["optional-dependencies"]
    print("\n".join(lowest([*PROJECT["dependencies"], *(line for name in sys.argv[1:] for line in extras[name])])))
