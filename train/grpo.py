"""`mllm train` of a config with `rewards`, for launchers that start a script.

deepspeed train/grpo.py --config my_grpo.yaml
"""

import sys

from mllm.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
