"""`mllm train`, for launchers that start a script.

deepspeed train/finetune.py --config train/configs/demo_stage2.yaml
"""

import sys

from mllm.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
