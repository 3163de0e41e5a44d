"""How a GPU multiplies matrices in float32."""

import torch


def multiply_as_asked(dtype: str) -> None:
    """Have `float32` mean it: with that dtype neither matrix products nor cuDNN's convolutions round to TF32.

    cuDNN does by default, for a convolution such as the encoder's patch embedding: 10 bits of mantissa are left of 23. Other
    dtypes leave what the process has set.
    """
    if dtype == "float32":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
