"""Keeping glibc from giving activation memory back to the kernel after every use."""

import ctypes
import mmap
import os
import sys
from functools import cache

import torch

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_HEAP_BLOCK = 1 << 30
HEAP_BLOCKS = 8
KERNELS_KEPT = 64


@cache
def keep_freed_memory() -> None:
    """On a Linux CPU machine, serve large tensors from the heap, keep freed pages there, and let them be huge pages.

    By default glibc maps and unmaps every block over 32 MiB, so each step pays for zeroed pages again: measured on a
    small CLIP, a third of the step went to the kernel, with packed rows of a small language model a quarter. Huge pages
    took another tenth off that language model's step. Once a process. No effect with a GPU or another C library.

    oneDNN keeps a kernel for each shape of its last 1,024 products, and packed rows have ever new shapes: the kernels,
    scattered over the heap, cost 0.3 GiB within ten steps. The last 64 serve all layers of a row, as fast (unless
    ONEDNN_PRIMITIVE_CACHE_CAPACITY says otherwise).
    """
    libc = _glibc()
    if libc is not None:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        _ask_for_huge_pages(libc)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Grow the heap by addresses alone (an untouched page takes no memory) and mark what was added."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = LARGEST_HEAP_BLOCK - mmap.PAGESIZE
    blocks = [block for block in (libc.malloc(size) for _ in range(HEAP_BLOCKS)) if block]
    for block in blocks:
        start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        # The kernel may not offer them: then nothing changes.
        libc.madvise(start, block + size - start, mmap.MADV_HUGEPAGE)
    for block in blocks:
        libc.free(block)


def _glibc() -> ctypes.CDLL | None:
    if torch.cuda.is_available() or not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") else None
