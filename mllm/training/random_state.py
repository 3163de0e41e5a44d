"""The random state of one rank, so that dropout goes on after a resume as if nothing had happened.

Everything of ours that draws numbers outside the model (data order, calibration) has seeded generators of its own.
"""

from collections.abc import Mapping

import torch


def random_state() -> dict[str, torch.Tensor]:
    """Of torch's generators on the CPU and, where there is one, on this process's GPU."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
