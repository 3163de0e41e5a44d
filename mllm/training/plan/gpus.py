"""GPUs that a run can be planned for."""

from dataclasses import dataclass

from mllm.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """Dense peak rates in FLOP/s as the makers state them (no sparsity), and memory in bytes (10⁹ to a GB)."""

    name: str
    bfloat16: float
    float32: float
    memory_bytes: float

    def peak(self, dtype: str) -> float:
        """FLOP/s of matrix products in a run of this dtype (`train.dtype`)."""
        return self.float32 if dtype == "float32" else self.bfloat16


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312e12, 19.5e12, 80e9),
        Gpu("a100-40gb", 312e12, 19.5e12, 40e9),
        Gpu("h100", 989e12, 67e12, 80e9),
        Gpu("h200", 989e12, 67e12, 141e9),
        Gpu("l4", 121e12, 30.3e12, 24e9),
        Gpu("l40s", 362e12, 91.6e12, 48e9),
        Gpu("rtx3090", 71e12, 35.6e12, 24e9),
        Gpu("rtx4090", 165e12, 82.6e12, 24e9),
    )
}


def gpu_named(name: str) -> Gpu:
    if name not in GPUS:
        raise UserError(f"--gpu {name!r} is not known; choose one of: {', '.join(sorted(GPUS))}")
    return GPUS[name]
