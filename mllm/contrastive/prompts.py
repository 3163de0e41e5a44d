"""Prompts that class names are put into: CLIP's published ensembles, a user's file, and names of ImageNet's classes."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import yaml

from mllm.contrastive.zeroshot import read_lines
from mllm.errors import UserError

PUBLISHED = Path(__file__).with_name("prompts.yaml")
BARE = ("{}",)


@cache
def published_ensembles() -> dict[str, list[str]]:
    """Read CLIP's prompt ensembles, by the name of the data set that each was published for."""
    ensembles: dict[str, list[str]] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return ensembles


def read_templates(source: Path | str) -> list[str]:
    """Read the prompts of a file, one a line, or a published ensemble by its name where no file has it.

    A class name's place is `{}`, or `{c}` as in CLIP_benchmark's files. Raises UserError that lists the names.
    """
    published = published_ensembles()
    if not Path(source).is_file():
        name = Path(source).name
        if name not in published:
            raise UserError(
                f"template file {source} does not exist; the published ensembles are {', '.join(sorted(published))}"
            )
        return list(published[name])
    return [line.replace("{c}", "{}") for line in read_lines(source, "template")]


def imagenet_names() -> dict[str, str]:
    """Name ImageNet's 1,000 classes as CLIP does: WordNet id → name, or place → name where timm, which has the ids, isn't
    installed.

    Raises UserError where open_clip, which has the names, isn't installed.
    """
    open_clip = _folder_of("open_clip")
    if open_clip is None:
        raise UserError(
            "the names of ImageNet's classes come with open_clip: pip install open_clip_torch, or give --class-file a file"
        )
    names = list(_module_of(open_clip / "zero_shot_metadata.py").IMAGENET_CLASSNAMES)
    timm = _folder_of("timm")
    synsets = None if timm is None else timm / "data" / "_info" / "imagenet_synsets.txt"
    ids = synsets.read_text(encoding="utf-8").split() if synsets is not None and synsets.is_file() else []
    keys = ids if len(ids) == len(names) else [str(place) for place in range(len(names))]
    return dict(zip(keys, names, strict=True))


def _folder_of(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _module_of(path: Path) -> ModuleType:
    """Load a module of data by its file alone: its package would load much else."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
