"""What learns: one function freezes, adds LoRA, and reports; another holds the report against the policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mllm.errors import UserError
from mllm.model.interface import PARTS, VisionLanguageModel
from mllm.model.lora import SETTINGS_OF_PART, add_lora, merge_lora
from mllm.model.quantized_layers import quantized_size
from mllm.model.settings import TrainableSettings

ADAPTED = ("lora", "dora", "qlora")


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part: all, those that learn, and in which manner. A 4-bit weight counts as one parameter."""

    part: str
    total: int
    trainable: int
    kind: str = ""


def apply_policy(model: VisionLanguageModel, policy: TrainableSettings) -> list[PartCount]:
    """Set `requires_grad` as the policy says (adding LoRA if asked and not there yet); returns counts by part.

    Updates that the model brings along go on learning if the policy asks for the same, and are merged otherwise.
    """
    wanted = wanted_adapters(policy)
    for part, settings in SETTINGS_OF_PART.items():
        if part in model.adapters and model.adapters[part] != wanted.get(part):
            merge_lora(model, part)
        if part in wanted and part not in model.adapters:
            add_lora(model, getattr(policy, settings), part, getattr(policy, part))
    _check_first_layers(model, policy)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, parameter in model.named_parameters():
        kind = getattr(policy, model.part_of(name))
        if kind == "full" or (kind in ADAPTED and "lora_" in name):
            parameter.requires_grad_(True)
    if policy.token_embeddings == "frozen":
        for parameter in model.token_embeddings():
            parameter.requires_grad_(False)
    for parameter in [*model.unused_parameters(), *_early_parameters(model, policy)]:
        parameter.requires_grad_(False)
    check_policy(model, policy)
    return count_parameters(model, policy)


def wanted_adapters(policy: TrainableSettings) -> dict[str, dict[str, Any]]:
    """Map part → kind and settings of the low-rank updates that the policy asks for, as a model's `adapters` has them."""
    return {
        part: {"kind": getattr(policy, part), **getattr(policy, settings).model_dump(mode="json")}
        for part, settings in SETTINGS_OF_PART.items()
        if getattr(policy, part) in ADAPTED
    }


def _check_first_layers(model: VisionLanguageModel, policy: TrainableSettings) -> None:
    if policy.vision_encoder_from_layer is not None:
        model.encoder_parameters_below(policy.vision_encoder_from_layer)
    first = policy.language_model_from_layer
    if first is not None and first >= (layers := len(model.decoder_layers())):
        raise UserError(
            f"trainable.language_model_from_layer is {first}, but the language model has layers 0 to {layers - 1}: none "
            "would learn"
        )


def _early_parameters(model: VisionLanguageModel, policy: TrainableSettings) -> list[nn.Parameter]:
    """List the parameters of encoder and language model below the first layer that learns."""
    early: list[nn.Parameter] = []
    first = policy.vision_encoder_from_layer
    if first is not None:
        early += model.encoder_parameters_below(first)
    first = policy.language_model_from_layer
    if first is not None:
        early += [parameter for layer in model.decoder_layers()[:first] for parameter in layer.parameters()]
    return early


def count_parameters(model: VisionLanguageModel, policy: TrainableSettings | None = None) -> list[PartCount]:
    """Counts by part, on whichever ZeRO stage; with `policy`, how each part learns."""
    out = []
    for part in PARTS:
        sizes = [(_size(p), p.requires_grad) for p in model.parameters_of(part)]
        kind = "" if policy is None else _kind(policy, part)
        out.append(PartCount(part, sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns), kind))
    return out


def _size(parameter: nn.Parameter) -> int:
    return quantized_size(parameter) or int(getattr(parameter, "ds_numel", parameter.numel()))


def _kind(policy: TrainableSettings, part: str) -> str:
    kind = getattr(policy, part)
    if kind in ADAPTED:
        return f"{kind}, rank {getattr(policy, SETTINGS_OF_PART[part]).rank}"
    first = getattr(policy, f"{part}_from_layer", None)
    if first is not None:
        return f"full from layer {first}"
    if part == "language_model" and kind == "full" and policy.token_embeddings == "frozen":
        return "full but embeddings"
    return kind


def check_policy(model: VisionLanguageModel, policy: TrainableSettings) -> None:
    """Raise RuntimeError if any parameter learns that the policy freezes, or the reverse."""
    embeddings = {id(p) for p in model.token_embeddings()} if policy.token_embeddings == "frozen" else set()
    outside = {id(p) for p in [*model.unused_parameters(), *_early_parameters(model, policy)]}
    for name, parameter in model.named_parameters():
        part = model.part_of(name)
        wanted = getattr(policy, part)
        if parameter.requires_grad and id(parameter) in embeddings:
            raise RuntimeError(f"{name} would learn, but trainable.token_embeddings is frozen")
        named = wanted == "full" or (wanted in ADAPTED and "lora_" in name)
        expected = named and id(parameter) not in embeddings | outside
        if parameter.requires_grad != expected:
            learns = "would learn" if parameter.requires_grad else "would not learn"
            raise RuntimeError(f"{name} {learns}, but trainable.{part} is {wanted}")
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("trainable: every part is frozen, so there is nothing to train")


def idle_modules(model: VisionLanguageModel, policy: TrainableSettings) -> list[str]:
    """Name what of an encoder that learns as a whole won't, as no feature depends on it: layers of lists, other modules."""
    if policy.vision_encoder != "full":
        return []
    unused = {id(parameter) for parameter in model.unused_parameters()}
    return sorted({_owner(name) for name, parameter in model.named_parameters() if id(parameter) in unused})


def _owner(name: str) -> str:
    """The module that a parameter is of, or the layer of a list that this stands in."""
    parts = name.split(".")
    end = next((place + 1 for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[:end])


def policy_table(counts: list[PartCount], rates: Mapping[str, tuple[float, float]] | None = None) -> str:
    """Write the counts as lines of text; `rates`: part → (learning rate, weight decay) of its parameters that learn."""
    heads = f"{'learning rate':>15}{'weight decay':>14}" if rates else ""
    rows = [f"{'part':<16}{'learns':<22}{'parameters':>16}{'trainable':>16}{heads}"]
    for count in counts:
        rate = ""
        if rates and count.trainable:
            lr, decay = rates[count.part]
            rate = f"{lr:>15g}{decay:>14g}"
        rows.append(f"{count.part:<16}{count.kind:<22}{count.total:>16,}{count.trainable:>16,}{rate}")
    total, trainable = sum(c.total for c in counts), sum(c.trainable for c in counts)
    return "\n".join([*rows, f"{'all':<38}{total:>16,}{trainable:>16,}"])
