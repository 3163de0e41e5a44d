"""What a model learned over another one, as an adapter that `peft` and transformers alone put on that other one, its base.

Low-rank updates stay factors; whatever else differs from the base is in the adapter whole, as `modules_to_save`.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from mllm.checkpoint import public
from mllm.checkpoint.layouts import layout_of
from mllm.checkpoint.llava import names_there
from mllm.checkpoint.llava_export import layout_config, layout_state
from mllm.checkpoint.origin import (
    BASE,
    DOWN,
    FACTOR,
    MAGNITUDE,
    UP,
    Held,
    Merged,
    Origin,
    StoredWeights,
)
from mllm.checkpoint.parts import local_directory
from mllm.errors import UserError
from mllm.model.assemble import saved_shapes
from mllm.model.lora import remove_lora
from mllm.model.multimodal import MultimodalLM
from mllm.processor import Processor

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# What peft calls the factors of a layer, beside what they are called here.
_NAMES = {DOWN: ".lora_A.weight", UP: ".lora_B.weight", MAGNITUDE: ".lora_magnitude_vector"}
# Relative distances of weights that are the same but for rounding: to a dtype, and to 4 bits.
_FLOAT32, _FOUR_BITS = 1e-5, 0.2
_INSTEAD = "name the model that the run began with, or write a base: mllm export RUN BASE --without-lora"


@dataclass(frozen=True)
class Learned:
    """A model by transformers' names.

    adapters: what holds adapted layers → kind and settings of their updates. factors: the tensors of those, by the names
    that a model in training has. weights: all others; are_merged says whether they have the updates in them.
    """

    adapters: Mapping[str, Mapping[str, Any]]
    factors: Mapping[str, torch.Tensor]
    weights: Origin
    are_merged: bool

    @property
    def layers(self) -> dict[str, Mapping[str, Any]]:
        """Adapted layer → its kind and settings."""
        names = [name.removesuffix(DOWN) for name in self.factors if name.endswith(DOWN)]
        return {name: self.adapters[str(self.root_of(name))] for name in names}

    def root_of(self, name: str) -> str | None:
        """What holds adapted layers and the module or weight of that name; None where nothing does."""
        return next((root for root in self.adapters if name.startswith(f"{root}.")), None)


def learned_of_public(directory: Path) -> Learned:
    """What a directory of transformers that a run with LoRA wrote holds. Raises UserError for another."""
    adapters = public.read_adapters(directory)
    _check_adapted(directory, adapters)
    factors = StoredWeights([directory / public.LOW_RANK])
    _, weights = public.open_weights(directory)
    return Learned(adapters, {name: factors.read(name) for name in factors.shapes}, weights, are_merged=True)


def learned_of_parts(source: Path, model: MultimodalLM, processor: Processor) -> Learned:
    """What a model of ours, loaded from `source`, holds in the layout of transformers; its updates are taken off it.

    Raises UserError for a model without updates, and for one that the layout can't hold.
    """
    _check_adapted(source, model.adapters)
    roots = {"language_model": "model.language_model", "vision_encoder": "model.vision_tower"}
    adapters = {roots[part]: adapter for part, adapter in model.adapters.items()}
    state = {name: tensor for name, tensor in model.state_dict().items() if FACTOR in name}
    factors = {"".join(there): state[name] for name, there in names_there(model, state).items()}
    remove_lora(model)
    layout = layout_of(model)
    config = layout_config(layout, model, processor, layout.tokenizer(processor))
    weights = layout_state(model, config.text_config.vocab_size)
    return Learned(adapters, factors, Held(weights), are_merged=False)


def write_peft(directory: Path, learned: Learned, base: str, dtype: torch.dtype) -> None:
    """Write `adapter_config.json` and the adapter's weights, in `dtype`, into `directory`.

    base: the directory or hub id that the adapter is for, as it will be named. Raises UserError where base and adapter
    don't make the model that was learned.
    """
    peer, theirs = public.open_weights(local_directory(base))
    layers = learned.layers
    modules = _modules_to_save(base, peer, _changed(base, learned, peer, theirs), layers)
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in _by_peft(learned.factors).items()}
    for module in modules:
        own = [name for name in learned.weights.shapes if name.startswith(f"{module}.")]
        tensors |= {f"{PREFIX}{name}": learned.weights.read(name) for name in own}
    _config(base, layers, modules).save_pretrained(str(directory))
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, directory / WEIGHTS)
    if any(adapter["kind"] == "qlora" for adapter in learned.adapters.values()):
        logger.warning(
            "the adapter was trained over weights in 4 bits (nf4): over those of %s, answers differ a little", base
        )


def _check_adapted(source: Path, adapters: Mapping[str, Any]) -> None:
    if not adapters:
        raise UserError(
            f"{source} has no low-rank updates to make an adapter of: train with trainable.language_model=lora, or write the "
            "whole model (--layout hf; a model of transformers is whole as it is)"
        )


def _by_peft(factors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ends = {name: next(end for end in _NAMES if name.endswith(end)) for name in factors}
    return {name.removesuffix(end) + _NAMES[end]: factors[name] for name, end in ends.items()}


def _config(base: str, layers: Mapping[str, Mapping[str, Any]], modules: list[str]) -> Any:
    """Say to peft which layers are adapted, and how; the parts may have ranks of their own."""
    from peft import LoraConfig

    kinds = {adapter["kind"] == "dora" for adapter in layers.values()}
    if len(kinds) > 1:
        raise UserError("a peft adapter is DoRA as a whole or not at all, and one part of this model is; take one kind")
    settings = list(layers.values())
    first = max(settings, key=settings.count)
    others = {name: adapter for name, adapter in layers.items() if adapter != first}
    return LoraConfig(
        base_model_name_or_path=base,
        r=first["rank"],
        lora_alpha=_whole(first["alpha"]),
        lora_dropout=first["dropout"],
        rank_pattern={name: adapter["rank"] for name, adapter in others.items()},
        alpha_pattern={name: _whole(adapter["alpha"]) for name, adapter in others.items()},
        target_modules=sorted(layers),
        modules_to_save=modules or None,
        use_dora=kinds.pop(),
        inference_mode=True,
    )


def _whole(alpha: float) -> Any:
    """The number as peft's own files have it, which is whole wherever it can be."""
    return int(alpha) if alpha == int(alpha) else alpha


def _changed(base: str, learned: Learned, peer: PreTrainedModel, theirs: Origin) -> list[str]:
    """List the weights that differ from the base's and are no adapted layer's.

    Raises UserError where an adapted layer is over other weights than the base's, or the two are no models of one kind.
    """
    layers, shapes, found = learned.layers, saved_shapes(peer), []
    has = learned.weights.shapes
    strange = [name for name, shape in shapes.items() if has.get(name) != shape]
    strange += [name for name in has if name not in shapes and name not in _tied(peer)]
    if strange:
        raise UserError(
            f"{base} is no base of this model, which has not its {strange[0]} or in another shape; {_INSTEAD}"
        )
    for name in shapes:
        layer = name.removesuffix(".weight")
        own, other = learned.weights.read(name), theirs.read(name)
        adapter = layers.get(layer)
        if adapter is not None and learned.are_merged:
            factors = {f: tensor for f, tensor in learned.factors.items() if f.startswith(f"{layer}{FACTOR}")}
            other = Merged(Held({f"{layer}{BASE}weight": other, **factors}), adapter).read(name)
        if _agree(own, other, _tolerance(learned, name, own)):
            continue
        if adapter is not None:
            raise UserError(f"{base} is not what the adapter was trained over: {name} differs; {_INSTEAD}")
        found.append(name)
    return found


def _tolerance(learned: Learned, name: str, own: torch.Tensor) -> float:
    """How far a weight may lie from the base's and be the same: nothing, unless it was merged or in 4 bits."""
    root = learned.root_of(name)
    if root is not None and learned.adapters[root]["kind"] == "qlora" and own.dim() == 2:
        return _FOUR_BITS
    is_merged = learned.are_merged and name.removesuffix(".weight") in learned.layers
    return max(torch.finfo(own.dtype).eps, _FLOAT32) if is_merged else 0.0


def _agree(own: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Whether two tensors are equal in the dtype of the first, or apart by no more than a share of their length."""
    other = other.to(own.dtype)
    if tolerance == 0.0:
        return torch.equal(own, other)
    return bool((own.float() - other.float()).norm() <= tolerance * own.float().norm())


def _modules_to_save(base: str, peer: PreTrainedModel, names: list[str], layers: Iterable[str]) -> list[str]:
    """Return the modules that own the weights `names`, those within another one left out.

    Raises UserError for weights that peft can't keep: tied ones, and those of a module with adapted `layers` or all parts.
    """
    shared = next((name for name in names if name in _tied(peer)), None)
    if shared is not None:
        raise UserError(
            f"{shared} differs from that of {base} and is shared by embeddings and head, which peft keeps apart; {_INSTEAD}"
        )
    owners = {name.rpartition(".")[0] for name in names}
    wide = {"", peer.base_model_prefix, *(parent for layer in layers for parent in _parents(layer))}
    if owners & wide:
        name = next(name for name in names if name.rpartition(".")[0] in wide)
        raise UserError(f"{name} differs from that of {base} and belongs to no module that peft could keep; {_INSTEAD}")
    return sorted(name for name in owners if not owners.intersection(_parents(name)))


def _parents(name: str) -> list[str]:
    """What holds the module of that name: `a.b.c` is in `a.b` and `a`."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(1, len(words))]


def _tied(peer: PreTrainedModel) -> set[str]:
    """The names of weights that have another name, too."""
    tied = getattr(peer, "all_tied_weights_keys", None) or {}
    return {*tied, *tied.values()}
