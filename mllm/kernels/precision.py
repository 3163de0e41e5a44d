"""The precision that a model computes in: of its parameters, and of products in float32."""

import torch
from torch import nn


def multiply_as_asked(dtype: str) -> None:
    """Have `float32` mean it: with that dtype neither matrix products nor cuDNN's convolutions round to TF32.

    cuDNN does by default, for a convolution such as the encoder's patch embedding: 10 bits of mantissa are left of 23. Other
    dtypes leave what the process has set.
    """
    if dtype == "float32":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the parameters of `module` that are floating-point numbers, and no buffer.

    Rotary frequencies and a projector's mean and deviation are constants, in float32 in every model: rounded to bfloat16,
    frequencies turn a phase by 2.5 rad at position 2,047.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return module
