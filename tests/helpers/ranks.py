"""What ranks do that `launches` starts: runs whose collectives are held to be alike, starts of runs, and ends of ranks."""

import json
import logging
import os
import signal
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from mllm.commands.shared import configure_logging, run_command
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.finetune.run import build_beginning, filling, finetune, parts_by_name
from mllm.finetune.settings import FinetuneSettings
from mllm.generation.run import train_diffusion
from mllm.generation.settings import DiffusionSettings
from mllm.grpo.run import learn_from_rewards
from mllm.grpo.settings import GrpoSettings
from mllm.kernels import loss
from mllm.model.assemble import parameters_on_meta
from mllm.model.trainable import apply_policy, count_parameters
from mllm.preference.run import train_preference
from mllm.preference.settings import PreferenceSettings
from mllm.settings import validate_settings
from mllm.training.build_engine import start_engine
from mllm.training.deepspeed_engine import init_distributed
from tests.helpers.collectives import meeting, recorded

PATIENCE_S = {"stuck": 10}  # the others have as long as a busy machine takes to start them
WAIT_S = 600


KINDS = {
    "preference": (PreferenceSettings, train_preference),
    "rewards": (GrpoSettings, learn_from_rewards),
    "pictures": (DiffusionSettings, train_diffusion),
}


def runs_in_step(planned: str) -> None:
    """Several runs after each other; `planned` is a list of [settings, step to stop and resume at or null] in JSON."""
    configure_logging()
    logging.getLogger("mllm").setLevel(logging.WARNING)
    # A few positions a chunk, so that ranks have unlike numbers of chunks.
    loss.LOGIT_ELEMENTS = 1 << 11
    # The next engine joins the same group.
    dist.destroy_process_group = lambda group=None: None
    store, rank, world_size = next(dist.rendezvous("env://"))
    for number, (values, stop_after) in enumerate(json.loads(planned)):
        kind, train = next((found for group, found in KINDS.items() if group in values), (FinetuneSettings, finetune))
        settings = validate_settings(kind, values, "test")
        with recorded(meeting(dist.PrefixStore(f"run{number}", store), rank, world_size)):
            if stop_after is not None:
                assert train(settings, stop_after) is None
            assert train(settings) is not None


def _begin(settings):
    mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, False)
    beginning = build_beginning(settings, mixture)
    with parameters_on_meta():
        counts = apply_policy(beginning.model, settings.trainable)
    return beginning, counts


def _compared(settings):
    """Start under the engine of `settings`, and in one process on rank 0; names of tensors that aren't equal."""
    beginning, counts = _begin(settings)
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
    alone, _ = _begin(settings)
    model, _ = alone.filled(torch.bfloat16 if settings.train.dtype == "bfloat16" else torch.float32)
    expected = model.state_dict()
    differ = [name for name, tensor in expected.items() if name not in state or not torch.equal(tensor, state[name])]
    assert rows in (0, len(model.language_model.get_input_embeddings().weight))
    return found | {"differ": differ, "more": sorted(state.keys() - expected.keys()), "counts": counts == counts_after}


def starts(planned: str, found_at: str) -> None:
    """Start each of the cases, and hold what the ranks got against one process.

    planned: a list of {"name": …, "settings": …} in JSON. Rank N writes a line for each to `FOUND_AT.N`: the names of
    tensors that differ, dtypes of buffers, rates, whether counts agree.
    """
    cases = json.loads(planned)
    presence = init_distributed(timedelta(minutes=5))
    rank = torch.distributed.get_rank()
    with open(f"{found_at}.{rank}", "w") as out:
        for case in cases:
            settings = validate_settings(FinetuneSettings, case["settings"], "test")
            try:
                found = _compared(settings)
            except UserError as error:
                found = {"error": str(error)}
            print(json.dumps({"name": case["name"]} | found), file=out, flush=True)
    presence.leave()
    presence.barrier()
    # What failed to start still watches the other ranks, in threads that an ordinary exit would end while they wait.
    os._exit(0)


def _act(fault: str, is_own: bool) -> None:
    if fault == "stopped":
        time.sleep(1.0 * is_own)
        raise KeyboardInterrupt("saved")
    if fault in ("killed", "killed_in_collective", "first_killed") and is_own:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault in ("mistake", "first_mistake") and is_own:
        raise UserError("sample 's3': its image is broken")
    if fault == "failure" and is_own:
        raise ZeroDivisionError("division by zero")
    if fault == "stuck" and is_own:
        time.sleep(WAIT_S)
    if fault in ("killed_in_collective", "stuck", "done"):
        dist.all_reduce(torch.zeros(1))
    else:
        threading.Event().wait(WAIT_S)  # as in a kernel that waits for a rank that is gone


def end_by(fault: str, rank_at_fault: int) -> None:
    """Join the group and end in one of several ways, or wait for the rank that does."""

    def command(arguments):
        presence = init_distributed(timedelta(seconds=PATIENCE_S.get(fault, 120)))
        with presence.together():
            _act(fault, dist.get_rank() == rank_at_fault)
        presence.leave()
        presence.barrier()

    run_command(command, [])
