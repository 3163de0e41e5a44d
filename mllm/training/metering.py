"""What a step cost: throughput, utilization, waiting, memory."""

import resource
import sys

import torch

GIB = 2**30


def peak_memory_gib() -> float:
    """The most that this process has held so far: on its GPU if it has one, else resident in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def step_costs(
    tokens: float, flops: float, computed_s: float, waited_s: float, ranks: int, peak_flops: float | None
) -> dict[str, float]:
    """Metrics of one step. tokens, flops: of all ranks; waited_s: for data; peak_flops: FLOP/s of one rank's device.

    Rates are over the whole of the step's time. `mfu`, model FLOPs utilization (Chowdhery et al. 2022), is there if its
    two numbers are known.
    """
    took_s = computed_s + waited_s
    costs = {
        "tokens_per_second": tokens / took_s,
        "step_s": took_s,
        "data_wait_share": waited_s / took_s,
        "peak_memory_gib": peak_memory_gib(),
    }
    if peak_flops and flops:
        costs["mfu"] = flops / took_s / (ranks * peak_flops)
    return costs
