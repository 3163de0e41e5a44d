"""What transformers' contract carries of a model: which inputs it takes, how it counts positions, how it attends.

It is found by asking, on a copy without contents (torch's meta device), not by the name of a family. What the contract
doesn't carry raises UserError.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from mllm.errors import UserError
from mllm.kernels.packed_rows import attention_of

PROBE = "mllm_probe"
PROBE_TOKENS = 8
FAR = 1 << 30  # a distance that no window reaches
LAYER_KINDS = ("full_attention", "sliding_attention")
FEATURE_TOKENS = ("image_token_id", "image_token_index")
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Carried:
    """What is known of a model.

    name: for messages. inputs: names that its forward takes. has_own_mask: whether its attention is anything but causal.
    feature_token_id: of the tokens that image features take the place of. token_types: the name under which it is told which
    tokens are of an image; None where it isn't. position_axes: along how many axes it counts positions; None along one, from
    0. rope_index: how it counts, for one sample alone.
    """

    name: str
    inputs: frozenset[str]
    has_own_mask: bool
    feature_token_id: int
    token_types: str | None
    position_axes: int | None
    rope_index: Callable[..., tuple[torch.Tensor, Any]] | None = field(default=None, repr=False, compare=False)

    def positions(
        self, input_ids: torch.Tensor, types: torch.Tensor, media: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """int64 [T] or [axes, T] of one sample; input_ids, types: int64 [T]; media: what its images became.

        Without an image all axes count alike.
        """
        plain = torch.arange(len(input_ids))
        if self.rope_index is None or self.position_axes is None:
            return plain
        if not media:
            return plain.expand(self.position_axes, -1)
        found, _ = self.rope_index(**_asked_for(self.rope_index, input_ids[None], types[None], media))
        return found[:, 0].to(torch.int64)


def carried_by(peer: PreTrainedModel) -> Carried:
    """Ask a model, with contents or without, what the contract carries of it. Raises UserError where it can't be used."""
    name, config = type(peer).__name__, peer.config
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{name} is an encoder–decoder: what its text attends to isn't in the row, so it isn't trained here"
        )
    if peer.base_model is peer:
        raise UserError(f"{name} has no model apart from its head, so that logits can't be had at chosen places alone")
    text = config.get_text_config()
    others = sorted({kind for kind in getattr(text, "layer_types", None) or () if kind not in LAYER_KINDS})
    if others:
        raise UserError(
            f"{name} has layers of {', '.join(others)}, whose state would pass from one sample of a packed row to the next"
        )
    if getattr(text, "attention_chunk_size", None):
        raise UserError(f"{name} attends in chunks counted from a row's start, which a packed sample doesn't stand at")
    inputs = frozenset(inspect.signature(peer.base_model.forward).parameters)
    types = next((own for own in TOKEN_TYPES if own in inputs), None)
    rope = next((own.get_rope_index for own in (peer.base_model, peer) if hasattr(own, "get_rope_index")), None)
    axes = _count_axes(rope, name) if rope is not None else None
    feature = next((own for key in FEATURE_TOKENS if (own := getattr(config, key, None)) is not None), None)
    if feature is None:
        raise UserError(
            f"{name} doesn't say which tokens image features take the place of: images reach its text otherwise"
        )
    return Carried(name, inputs, _has_own_mask(peer, types, axes), int(feature), types, axes, rope)


def _asked_for(
    function: Callable[..., Any], input_ids: torch.Tensor, types: torch.Tensor, media: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    known = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **dict.fromkeys(TOKEN_TYPES, types)}
    wanted = inspect.signature(function).parameters
    return {name: value for name, value in {**known, **media}.items() if name in wanted}


def _count_axes(rope: Callable[..., Any], name: str) -> int:
    ids = torch.zeros(1, 2, dtype=torch.int64)
    try:
        found, _ = rope(**_asked_for(rope, ids, ids, {}))
    except Exception as error:  # Each model's own code, which may fail in any way.
        raise UserError(f"{name} doesn't count the positions of two words: {error}") from None
    return len(found)


@dataclass
class _Asked:
    """What was seen while a copy computed: masks that aren't causal, and which of its layers attended by the registry."""

    masks: int = 0
    odd_masks: int = 0
    layers: set[int] = field(default_factory=set)
    rows_missing: bool = False


_asked = _Asked()


def _probe_mask(*_: Any, mask_function: Callable[..., torch.Tensor], **__: Any) -> None:
    _asked.masks += 1
    _asked.odd_masks += not _is_causal(mask_function)


def _is_causal(shows: Callable[..., torch.Tensor]) -> bool:
    """Whether a mask shows all that stands before, near and far, and nothing behind."""
    queries, keys = torch.tensor([0, 1, 1, FAR, FAR, 5]), torch.tensor([1, 0, 1, 0, FAR, FAR])
    zero = torch.zeros(1, dtype=torch.int64)
    try:
        return bool((shows(zero, zero, queries, keys) == (keys <= queries)).all())
    except Exception:  # It looks something up for each place, which is not there: no plain mask does.
        return False


def _probe_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **given: Any
) -> tuple[torch.Tensor, None]:
    _asked.layers.add(id(module))
    _asked.rows_missing |= given.get("packed_rows") is None
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


AttentionInterface.register(PROBE, _probe_attention)
AttentionMaskInterface.register(PROBE, _probe_mask)


def _has_own_mask(peer: PreTrainedModel, types: str | None, axes: int | None) -> bool:
    """Whether the attention of the model's text is anything but causal. What can't be asked is taken to be.

    Raises UserError where layers don't attend by transformers' registry, or don't hand on what isolates samples.
    """
    global _asked
    _asked = asked = _Asked()
    shadow = copy.deepcopy(peer).to("meta").eval()
    ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.int64, device="meta")
    positions = ids if axes is None else ids.expand(axes, 1, -1)
    given = {"input_ids": ids, "attention_mask": ids + 1, "position_ids": positions, "use_cache": False}
    told = {} if types is None else {types: ids}
    finished = True
    with attention_of(shadow.get_decoder(), PROBE), torch.no_grad():
        try:
            shadow.base_model(**given, **told, packed_rows=ids)
        except Exception:  # Tensors without contents can't answer every question that a model asks of them.
            finished = False
    name = type(peer).__name__
    if asked.rows_missing:
        raise UserError(f"{name} does not hand keywords on to its attention: packing can't isolate samples")
    count = peer.config.get_text_config().num_hidden_layers
    if finished and len(asked.layers) < count:
        raise UserError(
            f"{name}: {count - len(asked.layers)} of its {count} layers don't attend by transformers' registry (another "
            "kind of layer, or attention of its own), so that samples of a row can't be kept apart"
        )
    return asked.odd_masks > 0 or not asked.masks
