"""Models run on tensors that have shapes and no contents: what they would compute, keep and depend on, without the work.

Models of transformers ask small tensors how large images are, and split by the answers. So numbers keep their contents as
long as no weight has been in them.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class EmptyWeights(TorchDispatchMode):
    """Within a mode of tensors without contents: what is computed of numbers alone has contents, and weights have none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._makes_weights = False

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """A tensor without contents, of the CPU."""
        self._makes_weights = True
        try:
            return torch.empty(shape, dtype=dtype, device="cpu")
        finally:
            self._makes_weights = False

    def copy(self, module: nn.Module) -> nn.Module:
        """A copy whose parameters learn and have no contents; buffers are copied as they are."""
        weights = {id(own): nn.Parameter(self.empty(own.shape, own.dtype)) for own in module.parameters()}
        return copy.deepcopy(module, weights)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if self._makes_weights or any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, given))):
            return func(*args, **given)
        with unset_fake_temporarily():
            return func(*args, **given)


@contextmanager
def weights_without_contents() -> Iterator[EmptyWeights]:
    """Within the block, tensors that the mode it gives has emptied are computed with by shape alone."""
    with FakeTensorMode(allow_non_fake_inputs=True), EmptyWeights() as mode:
        yield mode


def leaves_behind(nodes: Iterable[Any]) -> set[int]:
    """The ids of the tensors that autograd's graph behind these nodes ends at."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [above for above, _ in node.next_functions if above is not None]
    return found
