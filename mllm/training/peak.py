"""The matrix-product rate that a run's utilization is held against: stated by the GPU's maker, or measured."""

import logging
import time
from functools import lru_cache

import torch

logger = logging.getLogger(__name__)

# Name that the driver gives → dense FLOP/s (no sparsity) in bfloat16 and in float32 (no TF32), from the data sheets.
GPU_PEAKS: dict[str, tuple[float, float]] = {
    "NVIDIA A100-PCIE-40GB": (312e12, 19.5e12),
    "NVIDIA A100-SXM4-40GB": (312e12, 19.5e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 19.5e12),
    "NVIDIA A100 80GB PCIe": (312e12, 19.5e12),
    "NVIDIA H100 80GB HBM3": (989e12, 67e12),
    "NVIDIA H100 PCIe": (756e12, 51e12),
    "NVIDIA H200": (989e12, 67e12),
    "NVIDIA L4": (121e12, 30.3e12),
    "NVIDIA L40S": (362e12, 91.6e12),
    "NVIDIA GeForce RTX 3090": (71e12, 35.6e12),
    "NVIDIA GeForce RTX 4090": (165e12, 82.6e12),
}
SIDES = {"cuda": 8192, "cpu": 1024}
MEASURED_S = 0.2


def device_peak_flops(device: torch.device, dtype: str) -> float:
    """FLOP/s of matrix products on `device` in a run of `train.dtype` `dtype`; the log says where the number is from."""
    precision = torch.float32 if dtype == "float32" else torch.bfloat16
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    if name in GPU_PEAKS:
        rate, origin = GPU_PEAKS[name][precision == torch.float32], "as its maker states"
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
