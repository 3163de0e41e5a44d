"""What a checkpoint's engine state consists of, so that a part that is missing or doesn't fit is found before loading."""

import json
from pathlib import Path

from torch import nn

from mllm.errors import UserError

NAME = "manifest.json"


def write_manifest(directory: Path, module: nn.Module) -> None:
    """List the files under `directory` with their sizes, and the shapes of the tensors of `module` that learn."""
    files = {str(p.relative_to(directory)): p.stat().st_size for p in sorted(directory.rglob("*")) if p.is_file()}
    (directory / NAME).write_text(json.dumps({"files": files, "learning": _shapes(module)}), encoding="utf-8")


def check_manifest(directory: Path, module: nn.Module) -> None:
    """Raise UserError if a listed file is missing or of another size, or `module` learns other tensors than listed.

    DeepSpeed would go on with a fresh optimizer when a rank's file is gone.
    """
    if not (directory / NAME).is_file():
        return
    listed = json.loads((directory / NAME).read_text(encoding="utf-8"))
    for name, size in listed["files"].items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size:
            found = f"has {path.stat().st_size} of {size} bytes" if path.is_file() else "is missing"
            raise UserError(
                f"{path} {found}: the checkpoint is not whole; remove {directory.parent} to go on from the one before"
            )
    saved, own = listed["learning"], _shapes(module)
    for name in sorted(saved.keys() | own.keys()):
        if saved.get(name) != own.get(name):
            raise UserError(
                f"{directory} was written by another architecture or policy: {name} has shape "
                f"{saved.get(name, 'none')} there and {own.get(name, 'none')} in this run; use another run_dir"
            )


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    # Under ZeRO-3 a partitioned parameter is flat here; ds_shape keeps its real shape.
    return {n: list(getattr(p, "ds_shape", p.shape)) for n, p in module.named_parameters() if p.requires_grad}
