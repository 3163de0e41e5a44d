"""Which GPU a rank takes, and that no two ranks take one."""

import os
import socket
from typing import Any

import torch

from mllm.errors import UserError


def take_gpu(store: Any, rank: int, world_size: int) -> None:
    """Make the GPU of LOCAL_RANK the current one, and LOCAL_RANK its number among those that this process sees.

    A scheduler that binds a GPU to each task lets every process see one alone: there a LOCAL_RANK beyond the last one is
    counted modulo their number. Whether that is a GPU of one's own is decided by its UUID, which ranks claim in `store`,
    a store of torch.distributed. Raises UserError when another rank has claimed it.
    """
    if not torch.cuda.is_available():
        return
    local_rank, visible = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    index = local_rank % visible
    os.environ["LOCAL_RANK"] = str(index)  # DeepSpeed reads it
    torch.cuda.set_device(index)
    if world_size == 1:
        return
    # The first claim of a GPU stays.
    claim = f"{socket.gethostname()}/{torch.cuda.get_device_properties(index).uuid}"
    owner = int(store.compare_set(f"gpu/{claim}", "", str(rank)))
    if owner != rank:
        raise UserError(
            f"ranks {owner} and {rank} would share a GPU of {socket.gethostname()}, where this process sees {visible}; "
            "start as many processes on a machine as it has GPUs (--num_gpus, --nproc_per_node, --ntasks-per-node)"
        )
