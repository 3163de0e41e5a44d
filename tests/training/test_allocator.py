import subprocess
import sys
from pathlib import Path

import pytest
import torch

MEASURED = """
import resource
import torch
from mllm.training.build_engine import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory()
found = []
for _ in range(3):
    before = faults()
    x = torch.ones(50_000_000)
    del x
    found.append(faults() - before)
heap = open("/proc/self/smaps").read().partition("[heap]")[2]
print(found[0], found[2], " hg" in heap)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    torch.cuda.is_available() or not Path("/proc/self/smaps").exists() or torch.version.hip is not None,
    reason="for Linux machines without a GPU",
)
def test_a_freed_tensor_of_200_megabytes_is_given_out_again_without_page_faults():
    first, third, *huge = subprocess.check_output([sys.executable, "-c", MEASURED], text=True).split()
    assert int(third) < 100
    # In huge pages, where the kernel has them; by pages of 4 KiB it would be 49,000 faults.
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if offered.exists() and "[never]" not in offered.read_text():
        assert int(first) < 5_000 and "True" in huge
