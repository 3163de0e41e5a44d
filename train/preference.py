"""`mllm train` of a config with `preference`, for launchers that start a script.

deepspeed train/preference.py --config train/configs/llava15_7b_dpo.yaml
"""

import sys

from mllm.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
