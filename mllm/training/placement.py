"""Where an engine wants a model's weights: on which device, whole or partitioned, and how ranks share what one reads."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mllm.checkpoint.fill import Place
from mllm.training.ds_config import zero_stage


def own_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def shared_place(keep: Callable[[nn.Parameter], None]) -> Place:
    """Rank 0 reads; `keep` is called on every rank with each parameter, which has its contents on rank 0 alone."""
    return Place(own_device(), dist.get_rank() == 0, _gather, _share, keep)


def zero_place(ds_config: dict[str, Any]) -> Place:
    """As DeepSpeed takes a model at the stage of `ds_config`, a filled one.

    Stages 0 to 2: whole on each device; DeepSpeed copies rank 0's parameters to the other ranks. Stage 3: partitioned as
    soon as a parameter is there, so that no rank has more than one of them whole.
    """
    if zero_stage(ds_config) == 3:
        return shared_place(_Partition(ds_config))
    return shared_place(_leave)


def _gather(value: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _share(value: Any) -> Any:
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _leave(parameter: nn.Parameter) -> None:
    """DeepSpeed does the rest."""


class _Partition:
    """Hands rank 0's contents of a parameter to all ranks, each of which keeps its part."""

    def __init__(self, ds_config: dict[str, Any]) -> None:
        self._ds_config = ds_config
        self._first: Any = None

    def __call__(self, parameter: nn.Parameter) -> None:
        if self._first is not None:
            self._first.convert_to_zero_parameters(param_list=[parameter])
            return
        import deepspeed

        deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=self._ds_config)
        self._first = parameter
