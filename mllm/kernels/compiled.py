"""Functions compiled by torch, which never fall back to being uncompiled without a word."""

from collections.abc import Callable
from typing import Any

import torch

from mllm.errors import UserError

# Lengths share a graph; training and evaluation, dtypes, widths, and inputs that learn or not have their own.
GRAPHS_KEPT = 64


def compiled(function: Callable[..., Any], dynamic: bool | None = None) -> Callable[..., Any]:
    """Turn `function` into kernels of its own, made when it is first called with inputs of a kind.

    dynamic: as `torch.compile`; by default a dimension becomes dynamic once it changes. Raises UserError, at a call, where
    it would have to be compiled for more than GRAPHS_KEPT kinds of inputs.
    """
    # As one graph: otherwise dynamo goes on uncompiled when it has as many graphs as it keeps.
    fast: Callable[..., Any] = torch.compile(function, dynamic=dynamic, fullgraph=True)

    def call(*inputs: Any, **named: Any) -> Any:
        torch._dynamo.config.recompile_limit = GRAPHS_KEPT
        try:
            return fast(*inputs, **named)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            raise UserError(
                f"{function.__name__} would have to be compiled for more than {GRAPHS_KEPT} kinds of inputs; write "
                "train.attention auto and train.fused_layers none"
            ) from None

    return call
