"""`mllm clip train`, for launchers that start a script.

deepspeed train/contrastive.py --config train/configs/demo_clip.yaml
"""

import sys

from mllm.cli import main

if __name__ == "__main__":
    main(["clip", "train", *sys.argv[1:]])
