"""Main memory that a run takes beside its processes: at the start, and while it saves."""

from dataclasses import dataclass

from mllm.finetune.plan.memory import GpuMemory, Weights
from mllm.model.multimodal import MultimodalLM
from mllm.model.settings import ModelSettings

# A tensor lies in main memory as it was stored, and as it is cast; float32 is the widest of both.
TENSOR_BYTES_EACH = 8


@dataclass(frozen=True)
class HostMemory:
    """Bytes of main memory under one engine, of each process of a machine with GPUs.

    stage: 0–3 of DeepSpeed, None for plain torch. start: while the model gets its weights; saving: while a checkpoint is
    written. Rank 0 alone reads, and alone gathers what is written. offloaded: what is there all along, on every rank.
    """

    stage: int | None
    start_rank_0: float
    start_others: float
    saving_rank_0: float
    offloaded: float

    @property
    def peak_rank_0(self) -> float:
        """The most at once on rank 0. What is offloaded isn't there yet at the start."""
        return max(self.start_rank_0, self.saving_rank_0 + self.offloaded)


def host_memory(memory: GpuMemory, model: MultimodalLM, weights: Weights, dtype: str, calibrated: bool) -> HostMemory:
    """Main memory under the engine of `memory`; `calibrated`: the run sets the scale of a new projector."""
    largest = max(parameter.numel() for parameter in model.parameters())
    start = float(TENSOR_BYTES_EACH * largest)
    if calibrated:
        start += 4.0 * sum(p.numel() for part in (model.vision_encoder, model.projector) for p in part.parameters())
    in_bfloat16 = dtype == "bfloat16" and memory.stage is not None
    return HostMemory(memory.stage, start, 0.0, weights.size(2 if in_bfloat16 else 4), memory.host)


def calibrates(settings: ModelSettings) -> bool:
    return settings.init_from is None and settings.projector.calibration_images > 0
