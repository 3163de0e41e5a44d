"""Run by every rank of a test: starts each case of a JSON file, and holds what the ranks got against one process.

Writes a line of JSON for each case: the names of tensors that differ, dtypes of buffers, rates, whether counts agree.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch

from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.finetune.run import build_beginning, filling, parts_by_name
from mllm.finetune.settings import FinetuneSettings
from mllm.model.fill import parameters_on_meta
from mllm.model.policy import apply_policy, count_parameters
from mllm.settings import validate_settings
from mllm.training.build_engine import start_engine
from mllm.training.deepspeed_engine import init_distributed


def start(settings):
    mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, False)
    beginning = build_beginning(settings, mixture)
    with parameters_on_meta():
        counts = apply_policy(beginning.model, settings.trainable)
    return beginning, counts


def compared(settings):
    """Start under the engine of `settings`, and in one process on rank 0; names of tensors that aren't equal."""
    beginning, counts = start(settings)
    wrap = start_engine(settings.engine, settings.optim, settings.train)
    engine = wrap(beginning.model.train(), filling(beginning), parts_by_name(beginning.model))
    state = engine.full_state_dict()
    rows = len(beginning.model.language_model.get_input_embeddings().weight)
    found = {"buffers": sorted({str(b.dtype) for b in engine.module.buffers() if b.is_floating_point()})}
    found["rates"] = sorted(group["base_lr"] for group in engine._engine.optimizer.param_groups)
    counts_after = count_parameters(engine.module, settings.trainable)
    engine._leave()
    engine._engine.destroy()
    if engine.rank != 0:
        return {}
    alone, _ = start(settings)
    model, _ = alone.filled(torch.bfloat16 if settings.train.dtype == "bfloat16" else torch.float32)
    expected = model.state_dict()
    differ = [name for name, tensor in expected.items() if name not in state or not torch.equal(tensor, state[name])]
    assert rows in (0, len(model.language_model.get_input_embeddings().weight))
    return found | {"differ": differ, "more": sorted(state.keys() - expected.keys()), "counts": counts == counts_after}


def main():
    cases = json.loads(Path(sys.argv[1]).read_text())
    presence = init_distributed(timedelta(minutes=5))
    rank = torch.distributed.get_rank()
    with open(sys.argv[2] + f".{rank}", "w") as out:
        for case in cases:
            settings = validate_settings(FinetuneSettings, case["settings"], "test")
            try:
                found = compared(settings)
            except UserError as error:
                found = {"error": str(error)}
            print(json.dumps({"name": case["name"]} | found), file=out, flush=True)
    presence.leave()
    presence.barrier()
    # What failed to start still watches the other ranks, in threads that an ordinary exit would end while they wait.
    os._exit(0)


if __name__ == "__main__":
    main()
