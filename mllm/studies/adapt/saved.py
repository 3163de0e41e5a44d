"""What was learned, on disk: `adapter.safetensors` with tensors, `adapter.json` with the rest and the model's fingerprint."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file

from mllm.errors import UserError
from mllm.inference.dual_features import DualEncoder
from mllm.inference.fingerprint import fingerprint
from mllm.studies.adapt.classifier import Classifier, Fields, Tensors, TextClassifier
from mllm.studies.adapt.coop import CoCoopClassifier, CoopClassifier
from mllm.studies.adapt.heads import HeadClassifier
from mllm.studies.adapt.probe import LinearClassifier
from mllm.studies.adapt.tip import CacheClassifier

KINDS: dict[str, Callable[[DualEncoder, Tensors, Fields], Classifier]] = {
    kind.kind: kind.restore
    for kind in (TextClassifier, LinearClassifier, CacheClassifier, CoopClassifier, CoCoopClassifier, HeadClassifier)
}


class Adapted(NamedTuple):
    """What was learned, and the classes that it was learned on."""

    classifier: Classifier
    names: Sequence[str]


def save_adapted(classifier: Classifier, names: Sequence[str], encoder: DualEncoder, directory: Path) -> None:
    """Write a classifier to a directory that is there."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in classifier.tensors().items()}
    save_file(tensors, directory / "adapter.safetensors")
    record: dict[str, Any] = {"kind": classifier.kind, "classes": list(names), "fields": classifier.fields()}
    record |= {"model": fingerprint(encoder.model), "fit": encoder.preparer.fit}
    (directory / "adapter.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_adapted(directory: Path | str, encoder: DualEncoder) -> Adapted:
    """Read what `save_adapted` wrote. Raises UserError when the directory isn't such, or belongs to another model or fit."""
    try:
        record = json.loads((Path(directory) / "adapter.json").read_text(encoding="utf-8"))
        tensors = load_file(Path(directory) / "adapter.safetensors")
        restore, fields, names = KINDS[record["kind"]], record["fields"], record["classes"]
        model, fit = record["model"], record["fit"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory} is no adapter ({str(error).splitlines()[0]}); `mllm clip adapt … --out` writes them"
        ) from None
    if model != fingerprint(encoder.model):
        raise UserError(f"{directory} was learned on a model with other weights; give the one that it was learned on")
    if fit != encoder.preparer.fit:
        raise UserError(f"{directory} was learned on images made square by {fit}: give --fit {fit}")
    return Adapted(restore(encoder, tensors, fields), names)
