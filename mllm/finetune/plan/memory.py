"""Memory of a run before it exists: a step is run on tensors without contents, and the rest is arithmetic.

B rows, T positions, N tiles, S supervised tokens, D language-model width.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mllm.batch import Batch
from mllm.errors import UserError
from mllm.finetune.plan.data import Shape
from mllm.finetune.plan.planned_rows import one_segment_each, planned_rows
from mllm.kernels.choice import Kernel
from mllm.kernels.lean_layers import use_lean_layers
from mllm.kernels.loss import chunk_rows, supervised_loss_sum
from mllm.model.interface import VisionLanguageModel
from mllm.model.without_contents import EmptyWeights, weights_without_contents
from mllm.processor import Processor
from mllm.training.ds_config import ZERO_DEFAULTS, offloads, zero_stage

# DeepSpeed's own sizes where a ds_config says none: elements, not bytes.
DEEPSPEED_BUCKET = 500_000_000
LIVE_ELEMENTS = 1_000_000_000
# nf4 with double quantization: a scale of 8 bits for each block of 64, and one of 32 for 256 of those.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


class LiveBytes(TorchDispatchMode):
    """Within the block: bytes of tensor storage `now` alive, and the most at once (`peak`), as autograd frees them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.count, out)
        return out


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a forward and backward need beside weights and gradients: kept activations, temporaries, logits.

    logits: the part of it that a chunk of the supervised-position loss takes. first: the same in a step of a single
    micro-batch, where activations are freed as gradients come into being.
    """

    activations: int
    first: int
    logits: int


def largest_of(memories: Sequence[StepMemory]) -> StepMemory:
    """The most of each, over micro-batches of which one takes more for tokens and another for tiles."""
    kept, first, logits = (max(m) for m in zip(*((m.activations, m.first, m.logits) for m in memories), strict=True))
    return StepMemory(kept, first, logits)


def step_memory(
    model: VisionLanguageModel,
    shape: Shape,
    dtype: str,
    checkpointing: bool,
    device: str,
    kernel: Kernel = "segments",
    processor: Processor | None = None,
) -> StepMemory:
    """Memory of one micro-batch, found by running it on tensors without contents; `model` is of no use afterwards.

    dtype: as `train.dtype`, float32 | autocast | bfloat16. device: "cpu" or "cuda", on which the run will have logits of
    other numbers of positions at once. kernel: segments, mask, or any of the others, which keep and allocate alike.
    processor: makes what a model that takes images whole gets of them. Raises UserError where such a model asks for
    contents.
    """
    rows = chunk_rows(_weight_of_head(model).shape[0], device)
    use_lean_layers(model.adapted_module("language_model"))
    try:
        with _emptying(model) as mode:
            _give_storage(model, torch.bfloat16 if dtype == "bfloat16" else torch.float32, mode)
            batch = _batch(shape, model, processor)
            words_dtype = model.token_embeddings()[0].dtype
            has_own_mask = processor is not None and not processor.shares_openings
            model.train()
            model.stay_packed()
            if checkpointing:
                # The random state can't be read while tensors have no contents, and dropout costs the same without it.
                options = {"use_reentrant": False, "preserve_rng_state": False}
                model.generator.gradient_checkpointing_enable(options)

            def forward() -> torch.Tensor:
                hidden = model.hidden_states(batch, None if has_own_mask else planned_rows(kernel, shape, words_dtype))
                return _loss(model, hidden.flatten(0, 1), shape, rows)

            fresh = _peak_over_weights(model, forward, dtype, resident_gradients=False)
            resident = _peak_over_weights(model, forward, dtype, resident_gradients=True)
            head = _peak_over_weights(model, lambda: _head_alone(model, shape, rows), dtype, resident_gradients=True)
    except (DataDependentOutputException, DynamicOutputShapeException):
        raise UserError(
            f"the memory of {type(model.generator).__name__} can't be foreseen: what its layers compute depends on contents, "
            "such as which experts a word goes to, and a plan has none"
        ) from None
    return StepMemory(resident, fresh, head)


@contextmanager
def _emptying(model: VisionLanguageModel) -> Iterator[EmptyWeights | None]:
    """Within the block weights can be emptied; of a model that takes images whole, other numbers keep their contents."""
    if model.tile_parts is None:
        with weights_without_contents() as mode:
            yield mode
    else:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield None


def _batch(shape: Shape, model: VisionLanguageModel, processor: Processor | None) -> Batch:
    """A batch of `shape`: of black images, or of tiles without contents."""
    if model.tile_parts is None:
        assert processor is not None, "images that are taken whole are made by a processor"
        return processor.blank_batch(shape.together, shape.rows, shape.length)
    encoder, side = model.tile_parts[0], model.tile_parts[0].tile_side_px
    ids = torch.zeros(shape.rows, shape.length, dtype=torch.int64)
    image_tokens = sum(visual.token_count for visual in shape.visuals)
    return Batch(
        input_ids=ids,
        position_ids=ids,
        segment_ids=ids,
        parent_segment=ids[:, :1],
        bounds=one_segment_each(shape),
        image_places=torch.zeros(image_tokens, dtype=torch.int64),
        target_places=ids[0, :0],
        target_ids=ids[0, :0],
        media={"tiles": torch.zeros(shape.tiles, encoder.channels, side, side)} if shape.visuals else {},
        visuals=shape.visuals,
        image_owners=("",) * shape.images,
    )


def _give_storage(model: VisionLanguageModel, dtype: torch.dtype, mode: EmptyWeights | None) -> None:
    constants = {id(buffer) for buffer in model.buffers()}

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        is_constant = id(tensor) in constants
        own = dtype if tensor.is_floating_point() and not is_constant else tensor.dtype
        if mode is None:
            return torch.empty(tensor.shape, dtype=own)
        return tensor if is_constant else mode.empty(tensor.shape, own)

    model._apply(filled)  # type: ignore[no-untyped-call]
    model.generator.tie_weights()


def _peak_over_weights(
    model: VisionLanguageModel, forward: Callable[[], torch.Tensor], dtype: str, resident_gradients: bool
) -> int:
    """Most bytes at once in a forward and backward, less those of weights and of all gradients."""
    learned = [p for p in model.parameters() if p.requires_grad]
    with LiveBytes() as live:
        for tensor in [*model.parameters(), *model.buffers()]:
            live.count(tensor)
        for parameter in learned:
            parameter.grad = torch.empty_like(parameter) if resident_gradients else None
        held = live.now
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            loss = forward()
        loss.backward()
    gradients = 0 if resident_gradients else sum(p.numel() * p.element_size() for p in learned if p.grad is not None)
    return max(0, live.peak - held - gradients)


def _head_alone(model: VisionLanguageModel, shape: Shape, rows: int) -> torch.Tensor:
    weight = _weight_of_head(model)
    hidden = weight.new_zeros(shape.rows * shape.length, weight.shape[1]).requires_grad_()
    return _loss(model, hidden, shape, rows)


def _weight_of_head(model: VisionLanguageModel) -> torch.Tensor:
    weight = model.head.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _loss(model: VisionLanguageModel, hidden: torch.Tensor, shape: Shape, rows: int) -> torch.Tensor:
    picked = hidden.index_select(0, torch.arange(max(1, shape.targets)))
    targets = torch.zeros(len(picked), dtype=torch.int64)
    return supervised_loss_sum(picked, model.head, targets, rows, model.logit_rule)


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on each GPU under one engine. stage: 0–3 of DeepSpeed, None for plain torch in one process.

    optimizer: moments and, where the engine keeps them, float32 master weights. buffers: DeepSpeed's buckets, gathered
    weights (stage 3) and gradients in float32 at the step. host: what is offloaded to the machine's memory.
    """

    stage: int | None
    ranks: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    host: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


@dataclass(frozen=True)
class Weights:
    """Parameters of a model: all of them, those that learn, and those in 4 bits.

    moment_bytes: what the optimizer keeps for each that learns, beside master weights: 8 for AdamW in float32. beside: those
    of a second model that only computes, whole on every rank.
    """

    parameters: int
    trainable: int
    quantized: int = 0
    moment_bytes: float = 8.0
    beside: int = 0

    def size(self, bytes_each: int) -> float:
        """Bytes of all weights, when those that aren't in 4 bits have `bytes_each`."""
        return bytes_each * (self.parameters - self.quantized) + NF4_BYTES * self.quantized


def torch_memory(weights: Weights, step: StepMemory, accumulates: bool) -> GpuMemory:
    """Plain torch: float32 weights and gradients, whatever the dtype of the products."""
    activations = step.activations if accumulates else step.first
    moments = weights.moment_bytes * weights.trainable
    return GpuMemory(
        None, 1, weights.size(4) + 4.0 * weights.beside, 4.0 * weights.trainable, moments, activations, 0.0
    )


def zero_memory(
    stage: int,
    ranks: int,
    weights: Weights,
    step: StepMemory,
    accumulates: bool,
    dtype: str,
    ds_config: dict[str, Any] | None = None,
) -> GpuMemory:
    """DeepSpeed at a ZeRO stage (Rajbhandari et al. 2020) as 0.19 does it.

    ds_config: a filled one (`fill_ds_config`); where it is of this stage, its sizes and offloading count.
    """
    own = ds_config if ds_config is not None and zero_stage(ds_config) == stage else {}
    zero = own.get("zero_optimization", {})
    bucket = DEEPSPEED_BUCKET if own else ZERO_DEFAULTS["reduce_bucket_size"]
    size, trainable = (2 if dtype == "bfloat16" else 4), weights.trainable
    held = weights.size(size) / (ranks if stage == 3 else 1) + size * weights.beside
    wide = own.get("data_types", {}).get("grad_accum_dtype") == "fp32"
    gradients = (4 if wide else size) * trainable / (ranks if stage >= 2 else 1)
    if stage == 0 and dtype != "bfloat16":
        # The optimizer works on the weights themselves. In bfloat16 `fill_ds_config` puts stage 1 in its place.
        activations = step.activations if accumulates else step.first
        return GpuMemory(0, ranks, held, gradients, weights.moment_bytes * trainable, activations, 0.0)
    optimizer, offloaded = (4.0 + weights.moment_bytes) * trainable / ranks, 0.0
    # One bucket fills while the other is reduced.
    filling = 2 if zero.get("overlap_comm") else 1
    buckets = filling * size * min(trainable, int(zero.get("reduce_bucket_size", bucket)))
    if stage == 3:
        buckets += size * min(weights.parameters, int(zero.get("stage3_max_live_parameters", LIVE_ELEMENTS)))
    if offloads(own, "offload_optimizer"):
        optimizer, offloaded = 0.0, optimizer
    if stage == 3 and offloads(own, "offload_param"):
        held, offloaded = 0.0, offloaded + held
    # At the step activations are gone, and the rank's gradients are there in float32.
    at_step = 4.0 * trainable / ranks if not offloaded else 0.0
    buffers = max(float(buckets), at_step - step.activations)
    return GpuMemory(stage, ranks, held, gradients, optimizer, step.activations, buffers, offloaded)
