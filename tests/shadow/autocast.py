"""Autocast of the shadow device: the operators that CUDA's runs in the lower dtype, and those that it runs in float32.

Lists of `aten/src/ATen/autocast_mode.h`, as far as the models here have such operators.
"""

from typing import Any

import torch
from torch.utils._pytree import tree_map

from tests.shadow.device import NAME

KEY = "AutocastPrivateUse1"
LOWER = (
    *("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "conv2d", "scaled_dot_product_attention"),
)
FLOAT32 = (
    *("layer_norm", "softmax.int", "log_softmax.int", "nll_loss", "cross_entropy_loss", "pow.Tensor_Scalar"),
    *("rsqrt", "exp", "log", "sum", "norm.Scalar", "prod", "cumsum"),
)
_everything = torch.library.Library("_", "IMPL")
_everything.fallback(torch.library.fallthrough_kernel, KEY)
_listed = torch.library.Library("aten", "IMPL")


def _cast(dtype: torch.dtype, value: Any) -> Any:
    is_ours = isinstance(value, torch.Tensor) and value.device.type == NAME and value.is_floating_point()
    return value.to(dtype) if is_ours and value.dtype not in (torch.float64, dtype) else value


def _register(name: str, dtype: torch.dtype | None) -> None:
    """Run `name` with operands of `dtype`, None for autocast's own."""
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            wanted = dtype or torch.get_autocast_dtype(NAME)
            cast_args, cast_kwargs = tree_map(lambda value: _cast(wanted, value), (args, kwargs))
            return operator(*cast_args, **cast_kwargs)

    _listed.impl(name, kernel, KEY)


def register() -> None:
    """Give the device its lists."""
    for name in LOWER:
        _register(name, None)
    for name in FLOAT32:
        _register(name, torch.float32)
