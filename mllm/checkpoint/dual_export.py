"""A dual encoder in another layout: transformers' safetensors, or open_clip's directory."""

import json
import logging
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import save_torch_state_dict
from transformers import CLIPModel

from mllm.checkpoint.dual import dual_directory, load_dual
from mllm.checkpoint.dual_pixels import image_values
from mllm.checkpoint.open_clip import save_open_clip
from mllm.checkpoint.open_clip_config import image_processor, is_open_clip, read_config
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.model.dual_kinds import DUAL_KINDS

logger = logging.getLogger(__name__)

BY = "mllm clip export"
Layout = Literal["transformers", "open_clip"]


def export_dual(path: Path | str, out: Path, layout: Layout) -> None:
    """Write the dual encoder of a directory, or of a run, to the directory `out`, in float32.

    Weights may be a pickle: torch reads it without running what is in it. Raises UserError for what isn't a dual encoder,
    and for one that open_clip's `CLIP` can't be.
    """
    directory = dual_directory(path)
    model, tokenizer = load_dual(directory, reads_pickles=True)
    if layout == "open_clip":
        if not isinstance(model, CLIPModel):
            raise UserError(f"{path} is a {type(model).__name__}; open_clip's layout is written of a CLIPModel")
        if _is_padded(directory):
            logger.warning("%s was trained on padded images, which open_clip crops: its scores may be lower", path)
        with atomic_directory(out, BY, [directory]) as hidden:
            save_open_clip(hidden, model, tokenizer, image_values(directory))
        return
    config: Any = model.config
    config.architectures, config.dtype = [DUAL_KINDS[config.model_type].model_class], "float32"
    with atomic_directory(out, BY, [directory]) as hidden:
        config.save_pretrained(hidden)
        save_torch_state_dict(model.state_dict(), hidden)
        tokenizer.save_pretrained(hidden)
        _save_processor(directory, hidden)


def _save_processor(directory: Path, hidden: Path) -> None:
    if is_open_clip(directory):
        image_processor(read_config(directory)).save_pretrained(hidden)
        return
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (directory / name).is_file():
            values = json.loads((directory / name).read_text(encoding="utf-8"))
            values |= {"fit": "pad"} if name.startswith("pre") and _is_padded(directory) else {}
            (hidden / name).write_text(json.dumps(values, indent=2), encoding="utf-8")


def _is_padded(directory: Path) -> bool:
    """Whether images are padded to squares, which transformers' processors have no word for; a run's log says so, too."""
    written = directory / "preprocessor_config.json"
    fit = json.loads(written.read_text(encoding="utf-8")).get("fit") if written.is_file() else None
    return fit == "pad" or (fit is None and (directory / "training_log.json").is_file())
