"""The matrix-product rate that a run's utilization is held against: stated by the GPU's maker, or measured."""

import logging
import time
from functools import lru_cache

import torch

from mllm.training.gpus import gpu_of_driver

logger = logging.getLogger(__name__)

SIDES = {"cuda": 8192, "cpu": 1024}
MEASURED_S = 0.2


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
