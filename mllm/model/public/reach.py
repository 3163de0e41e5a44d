"""Which weights of a model's encoder images reach its text through, and how many of its layers stand behind each.

Both are read off the graph that autograd keeps of a forward on tensors without contents, not off any name.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from mllm.model.without_contents import leaves_behind, weights_without_contents


@dataclass(frozen=True)
class Reach:
    """What was found of an encoder, names as the model has them.

    unreached: the encoder's weights that nothing in front of the text depends on. heights: of the others, how many of the
    layers that are used stand behind each, its own with them, and one more in front of all. layers: how many are used; 0
    where no single list of layers was found.
    """

    unreached: frozenset[str]
    heights: Mapping[str, int]
    layers: int


class _AtTheText(Exception):
    """The decoder was called: nothing behind it matters."""


def reach_of(peer: PreTrainedModel, several: Iterable[Mapping[str, torch.Tensor]]) -> Reach | None:
    """Look at what `peer` makes of several inputs of its `base_model`, each with images. None without any, and where a
    forward on tensors without contents doesn't come as far as the text."""
    if not (looked_at := list(several)):
        return None
    with weights_without_contents() as mode:
        return _looked_through(mode.copy(peer).eval(), looked_at)


def _looked_through(shadow: Any, several: Iterable[Mapping[str, torch.Tensor]]) -> Reach | None:
    encoder = shadow.get_encoder(modality="image")
    own = {id(parameter): name for name, parameter in _named(shadow, encoder)}
    layers = _layers(encoder)
    reached: set[str] = set()
    heights: Counter[str] = Counter()
    used = 0
    for inputs in several:
        states = _forward(shadow, layers, inputs)
        if states is None:
            return None
        text, first, outputs = states
        reached |= _named_leaves(text, own)
        behind = [_named_leaves(output, own) for output in outputs]
        behind = [found for layer, found in zip(layers, behind, strict=True) if _ids(layer, own) & reached and found]
        counted = Counter(name for found in [_named_leaves(first, own), *behind] for name in found)
        heights |= counted
        used = max(used, len(behind))
    return Reach(frozenset(own.values()) - reached, heights, used)


def _named(shadow: nn.Module, encoder: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    inside = {id(parameter) for parameter in encoder.parameters()}
    return ((name, parameter) for name, parameter in shadow.named_parameters() if id(parameter) in inside)


def _ids(layer: nn.Module, own: Mapping[int, str]) -> set[str]:
    return {own[id(parameter)] for parameter in layer.parameters() if id(parameter) in own}


def _layers(encoder: nn.Module) -> list[nn.Module]:
    """The longest list of modules of one class, if there is one that is longer than all others."""
    lists = [list(own) for own in encoder.modules() if isinstance(own, nn.ModuleList) and len({*map(type, own)}) == 1]
    longest = max(map(len, lists), default=0)
    found = [own for own in lists if len(own) == longest]
    return found[0] if len(found) == 1 else []


def _forward(
    shadow: Any, layers: list[nn.Module], inputs: Mapping[str, torch.Tensor]
) -> tuple[list[Any], list[Any], list[list[Any]]] | None:
    """Ends of the graph: at the text, in front of the layers, and behind each; None where the text isn't reached."""
    text: list[Any] = []
    first: list[Any] = []
    outputs: list[list[Any]] = [[] for _ in layers]

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        text.extend(_ends((args, kwargs)))
        raise _AtTheText

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        first.extend(_ends((args, kwargs)))

    hooks = [shadow.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)]
    if layers:
        hooks.append(layers[0].register_forward_pre_hook(begin, with_kwargs=True))
    for layer, own in zip(layers, outputs, strict=True):
        hooks.append(layer.register_forward_hook(lambda *given, own=own: own.extend(_ends(given[-1]))))
    try:
        with torch.enable_grad():
            shadow.base_model(**inputs, use_cache=False)
    except _AtTheText:
        return text, first, outputs
    except Exception:  # Tensors without contents can't answer every question that a model asks of them.
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _ends(values: Any) -> list[Any]:
    """The nodes that made the tensors among `values`."""
    return [leaf.grad_fn for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None]


def _named_leaves(ends: Iterable[Any], own: Mapping[int, str]) -> set[str]:
    """The names of the parameters that the tensors of these nodes depend on."""
    return {own[leaf] for leaf in leaves_behind(ends) if leaf in own}
