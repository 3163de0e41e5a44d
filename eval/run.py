"""`mllm eval`, for launchers that start a script.

torchrun --nproc_per_node 8 eval/run.py --model runs/demo/stage2 --benchmarks pope --data data
"""

import sys

from mllm.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
