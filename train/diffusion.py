"""`mllm generate train`, for launchers that start a script.

deepspeed train/diffusion.py --config train/configs/demo_diffusion.yaml
"""

import sys

from mllm.cli import main

if __name__ == "__main__":
    main(["generate", "train", *sys.argv[1:]])
