"""GPUs that a run can be planned for, and that its utilization is held against when it is on one."""

from dataclasses import dataclass

from mllm.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """Dense peak rates in FLOP/s as the makers state them (no sparsity, no TF32), and memory in bytes (10⁹ to a GB).

    driver_names: what `torch.cuda.get_device_name` calls it.
    """

    name: str
    bfloat16: float
    float32: float
    memory_bytes: float
    driver_names: tuple[str, ...]

    def peak(self, dtype: str) -> float:
        """FLOP/s of matrix products in a run of this dtype (`train.dtype`)."""
        return self.float32 if dtype == "float32" else self.bfloat16


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312e12, 19.5e12, 80e9, ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe")),
        Gpu("a100-40gb", 312e12, 19.5e12, 40e9, ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")),
        Gpu("h100", 989e12, 67e12, 80e9, ("NVIDIA H100 80GB HBM3",)),
        Gpu("h200", 989e12, 67e12, 141e9, ("NVIDIA H200",)),
        Gpu("l4", 121e12, 30.3e12, 24e9, ("NVIDIA L4",)),
        Gpu("l40s", 362e12, 91.6e12, 48e9, ("NVIDIA L40S",)),
        Gpu("rtx3090", 71e12, 35.6e12, 24e9, ("NVIDIA GeForce RTX 3090",)),
        Gpu("rtx4090", 165e12, 82.6e12, 24e9, ("NVIDIA GeForce RTX 4090",)),
    )
}


def gpu_named(name: str) -> Gpu:
    if name not in GPUS:
        raise UserError(f"--gpu {name!r} is not known; choose one of: {', '.join(sorted(GPUS))}")
    return GPUS[name]


def gpu_of_driver(name: str) -> Gpu | None:
    """The GPU that the driver calls `name`, if it is listed."""
    return next((gpu for gpu in GPUS.values() if name in gpu.driver_names), None)
