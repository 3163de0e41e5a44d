"""GPUs that a run can be planned for, and the matrix-product rate that its utilization is held against: stated by the GPU's
maker, or measured."""

import logging
import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from mllm.errors import UserError

logger = logging.getLogger(__name__)

SIDES = {"cuda": 8192, "cpu": 1024}
MEASURED_S = 0.2


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


def device_peak_flops(device: torch.device, dtype: str) -> float:
    """FLOP/s of matrix products on `device` in a run of `train.dtype` `dtype`; the log says where the number is from."""
    precision = torch.float32 if dtype == "float32" else torch.bfloat16
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    listed = gpu_of_driver(name)
    if listed is not None:
        rate, origin = listed.peak(dtype), "as its maker states"
    else:
        side = SIDES[device.type]
        rate, origin = measured_peak_flops(device.type, precision, side), f"measured on products of {side}³"
    logger.info("MFU is held against %.2f TFLOP/s of %s in %s, %s", rate / 1e12, name, precision, origin)
    return rate


@lru_cache
def measured_peak_flops(device: str, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of the best of several products of square matrices, with the threads that the run has."""
    generator = torch.Generator(device).manual_seed(0)  # its own: measuring leaves the run's random state alone
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    best = float("inf")
    started = time.monotonic()
    while time.monotonic() - started < MEASURED_S:
        began = time.monotonic()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.monotonic() - began)
    return 2.0 * side**3 / best
