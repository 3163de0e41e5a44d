"""How near `mllm plan` comes to the memory of real runs: planned bytes beside the growth of a process that trains.
Linux alone.

python benchmarks/plan_memory.py            # on a CPU; each run in a process of its own
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import machine, markdown_table
from workloads import CLIP_B16, SMOLLM2_135M, prepare, save_parts, save_recipe, settings_of

from mllm.finetune.plan import Machine, Plan, plan_runs
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import InstructionTask
from mllm.training.engine import Engine

STEPS = 2
TINY = {"num_hidden_layers": 2, "hidden_size": 144, "intermediate_size": 64, "num_attention_heads": 9}
RUNS: dict[str, dict[str, Any]] = {
    "full, float32, shared prefix": {},
    "full, autocast, packed": {"data": {"packing": "samples"}, "train": {"dtype": "autocast"}},
    "full, float32, rows of one sample": {"data": {"packing": "none"}, "train": {"micro_batch_size": 4}},
    "full, float32, checkpointing": {"train": {"gradient_checkpointing": True}},
    "LoRA r 16, autocast": {
        "trainable": {"language_model": "lora", "lora": {"rank": 16, "alpha": 32}},
        "train": {"dtype": "autocast"},
    },
    "projector alone, float32": {"trainable": {"language_model": "frozen"}},
}


def settings(root: Path, name: str) -> FinetuneSettings:
    return settings_of(root, root / "data" / "recipe.yaml", root / "run", **RUNS[name])


def measure(root: Path, name: str) -> int:
    """Bytes by which this process has grown at its largest during STEPS steps.

    Counted from after a step of a tiny model, which brings in what Python imports late; the loading itself, which for a
    moment may hold weights twice, doesn't count.
    """
    _steps(*prepare(settings_of(root / "tiny", root / "data" / "recipe.yaml", root / "run")), 1)
    before = _status_bytes("VmRSS")
    task, engine = prepare(settings(root, name))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is counted from here
    _steps(task, engine, STEPS)
    return _status_bytes("VmHWM") - before


def _steps(task: InstructionTask, engine: Engine, count: int) -> None:
    for step in range(count):
        window = task.window(step, 0, 1)
        for number, micro_batch in enumerate(window.micro_batches):
            with engine.autocast():
                loss = task.loss(engine.module, micro_batch).loss_sum
            engine.backward(loss, 1e-3, last=number == len(window.micro_batches) - 1)
            del loss
        engine.step(1.0)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def row(name: str, plan: Plan, measured: int) -> list[str]:
    own = plan.own_memory
    parts = (own.weights, own.gradients, own.optimizer, own.activations)
    return [name, *(f"{part / 1e9:.2f}" for part in (*parts, own.total, measured)), f"{own.total / measured:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6, help="of the language model of SmolLM2-135M's width")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(Path(options.child[0]), options.child[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_parts(root, SMOLLM2_135M | {"num_hidden_layers": options.layers})
        save_parts(root / "tiny", SMOLLM2_135M | TINY, CLIP_B16 | TINY)
        save_recipe(root / "data", images=8, conversations_per_image=5, text_tokens=(30, 110))
        rows = []
        for name in RUNS:
            plan = plan_runs([settings(root, name)], Machine(), max_samples=10_000)[0]
            command = [sys.executable, __file__, "--child", str(root), name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(row(name, plan, int(done.stdout.splitlines()[-1])))
    print(machine())
    print(f"GB; SmolLM2-135M's width, {options.layers} layers, with CLIP ViT-B/16's shape; {STEPS} steps\n")
    header = ["run", "weights", "gradients", "optimizer", "activations", "planned", "measured", "planned / measured"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
