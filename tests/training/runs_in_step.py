"""Run by a launcher: several runs after each other in the same processes, whose collectives are held to be alike.

usage: runs_in_step.py FILE; FILE holds a list of [settings, step to stop and resume at or null].
"""

import json
import logging
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from mllm.commands.shared import configure_logging
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.kernels import loss
from mllm.settings import validate_settings
from tests.training.collectives import meeting, recorded

torch.set_num_threads(1)
# A few positions a chunk, so that ranks have unlike numbers of chunks.
loss.LOGIT_ELEMENTS = 1 << 11


def main(path):
    configure_logging()
    logging.getLogger("mllm").setLevel(logging.WARNING)
    # The next engine joins the same group.
    dist.destroy_process_group = lambda group=None: None
    store, rank, world_size = next(dist.rendezvous("env://"))
    for number, (values, stop_after) in enumerate(json.loads(Path(path).read_text())):
        settings = validate_settings(FinetuneSettings, values, "test")
        with recorded(meeting(dist.PrefixStore(f"run{number}", store), rank, world_size)):
            if stop_after is not None:
                assert finetune(settings, stop_after) is None
            assert finetune(settings) is not None


main(sys.argv[-1])
