"""Where installed packages keep the data that they bring along."""

import importlib.util
from pathlib import Path


def package_folder(name: str) -> Path | None:
    """Return the folder of an installed package, found without importing it; None where it isn't installed."""
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) if places else None
