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


class _KnownNumbers(TorchDispatchMode):
    """Within a mode of tensors without contents: what is computed of contents alone has contents."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, given))):
            return func(*args, **given)
        with unset_fake_temporarily():
            return func(*args, **given)


@contextmanager
def weights_without_contents() -> Iterator[FakeTensorMode]:
    """Within the block, tensors that were made under the mode it gives, such as weights, are computed with by shape alone."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, _KnownNumbers():  # type: ignore[no-untyped-call]
        yield mode


def empty_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters are of the CPU, learn, and have no contents; buffers are copied as they are."""
    with FakeTensorMode():  # type: ignore[no-untyped-call]
        weights = {
            id(own): nn.Parameter(torch.empty(own.shape, dtype=own.dtype, device="cpu")) for own in module.parameters()
        }
    return copy.deepcopy(module, weights)


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
