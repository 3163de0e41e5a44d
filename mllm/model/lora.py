"""Low-rank updates of a part: which layers they go to, adding them, folding them in."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from mllm.errors import UserError
from mllm.model.interface import VisionLanguageModel
from mllm.model.quantized_layers import dequantize_linears, dequantized, is_quantized, quantize_linears, replace_module
from mllm.model.settings import LoraSettings

# peft brings bitsandbytes and Inductor along, 54 MB a rank that a run without LoRA can do without.
if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

logger = logging.getLogger(__name__)

SETTINGS_OF_PART = {"language_model": "lora", "vision_encoder": "vision_encoder_lora"}


def linear_layers(model: VisionLanguageModel, part: str) -> list[str]:
    """List the linear layers of a part that may be adapted: not the head, and none behind the features."""
    left_out = {id(parameter) for parameter in (*model.head.parameters(), *model.unused_parameters())}
    return [
        name
        for name, module in model.adapted_module(part).named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in left_out
    ]


def choose_targets(layers: list[str], settings: LoraSettings, part: str) -> list[str]:
    """Return the full names among `layers` that match a pattern of `settings.targets`; all where there are no patterns.

    Raises UserError for a pattern that matches nothing, with the names that are there.
    """
    where = f"trainable.{SETTINGS_OF_PART[part]}.targets"
    if not layers:
        raise UserError(f"trainable.{part}: it has no linear layer to put LoRA on")
    chosen: set[str] = set()
    for pattern in settings.targets:
        matching = {name for name in layers if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")}
        if not matching:
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise UserError(
                f"{where}: {pattern!r} matches none of the {len(layers)} linear layers of {part}; "
                f"they end in {ends}, and the first is {layers[0]}"
            )
        chosen |= matching
    return [name for name in layers if name in chosen] if settings.targets else layers


def add_lora(
    model: VisionLanguageModel, settings: LoraSettings, part: str = "language_model", kind: str = "lora"
) -> None:
    """Put updates of `kind` (lora, dora, qlora) on the linear layers of `part` that `settings.targets` choose.

    qlora puts every linear layer into 4 bits first, chosen or not, unless they are already.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    root = model.adapted_module(part)
    layers = linear_layers(model, part)
    targets = choose_targets(layers, settings, part)
    if kind == "qlora":
        quantize_linears(root, [name for name in layers if not is_quantized(root.get_submodule(name))])
        root.is_loaded_in_4bit = True  # peft takes its 4-bit layers only for a model that says so
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        bias="none",
        use_dora=kind == "dora",
    )
    inject_adapter_in_model(config, root)
    root.__dict__.pop("is_loaded_in_4bit", None)
    adapted = {name for name, module in root.named_modules() if isinstance(module, LoraLayer)}
    if adapted != set(targets):
        raise RuntimeError(f"LoRA landed in {sorted(adapted ^ set(targets))[:3]}, which was not asked for")
    model.adapters[part] = {"kind": kind, **settings.model_dump(mode="json")}


def is_update(name: str) -> bool:
    """Whether the parameter of that name belongs to a low-rank update."""
    return "lora_" in name


@contextmanager
def without_updates(model: nn.Module) -> Iterator[None]:
    """Within the block, compute as if the low-rank updates of `model` weren't there; what learns stays as it is."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        # peft's own switch would also freeze the updates, and engines have hooks on what learns.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merge_lora(model: VisionLanguageModel, part: str | None = None) -> None:
    """Fold the updates of `part` (None: of every part) into the weights they adapt: same function, plain layers.

    4-bit weights are dequantized: the result holds the rounded weights, not those that the model had before QLoRA.
    """
    for adapted in [part] if part is not None else list(model.adapters):
        if _make_plain(model, adapted, _merged)["kind"] == "qlora":
            logger.info("merged 4-bit weights of %s: what rounding to nf4 lost stays lost", adapted)


def remove_lora(model: VisionLanguageModel) -> None:
    """Take the updates of every part off again, which leaves the weights that they adapt; 4-bit ones are dequantized."""
    for part in list(model.adapters):
        _make_plain(model, part, lambda layer: layer.get_base_layer())


def _make_plain(model: VisionLanguageModel, part: str, plain: "Callable[[LoraLayer], nn.Module]") -> dict[str, Any]:
    """Put what `plain` makes of each adapted layer of a part in its place; returns what the updates were."""
    from peft.tuners.lora import LoraLayer

    root = model.adapted_module(part)
    for name, module in list(root.named_modules()):
        if isinstance(module, LoraLayer):
            replace_module(root, name, plain(module))
    del root.peft_config
    dequantize_linears(root)
    return model.adapters.pop(part)


def _merged(layer: "LoraLayer") -> nn.Module:
    base = layer.get_base_layer()
    if is_quantized(base):
        plain = dequantized(base)
        plain.weight.data += layer.get_delta_weight("default").to(plain.weight.dtype)
        return plain
    layer.merge()
    return base
