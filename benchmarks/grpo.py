"""What it takes to learn from groups of answers: a training step on shared trunks against one on separate rows, and sampling.

    OMP_NUM_THREADS=2 python benchmarks/grpo.py

SmolLM2-135M's shape behind CLIP-B/16's (196 image tokens), random weights, prompts of one image each. The answers of the
training step are the same words in both layouts, so that their losses have to agree.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from measuring import in_turn, machine, markdown_table, spread
from workloads import LOSSES_AGREE, SHAPES, prepare, save_parts, save_recipe, settings_of, train_step

from mllm.finetune.watching import RunContext
from mllm.grpo.rounds import Group, Told
from mllm.grpo.settings import GrpoSettings
from mllm.grpo.task import GrpoTask, Round
from mllm.inference.decoding import Decoding
from mllm.inference.sampling import sample_answers
from mllm.rewards.asked import ask
from mllm.rewards.scoring import Rewards
from mllm.settings import validate_settings
from mllm.training.task import StepWindow

LAYOUTS = {"shared_prefix": "a trunk for each prompt", "none": "separate rows"}


def task_of(root: Path, layout: str, options: argparse.Namespace) -> GrpoTask:
    """The task of a run whose answers lie in rows by `layout`, with a model of its own."""
    sections = {
        "data": {"packing": layout, "max_length_tokens": 2048},
        "train": {"global_batch_size": options.prompts, "dtype": options.dtype},
    }
    plain = settings_of(root, root / "data" / "recipe.yaml", root / layout, **sections)
    own = {
        "rewards": {"parts": [{"kind": "format", "pattern": ".*"}]},
        "sampling": {"answers": options.answers, "max_new_tokens": options.tokens},
    }
    settings = validate_settings(GrpoSettings, plain.model_dump(mode="json") | own, "benchmark")
    made, engine = prepare(plain)
    context = RunContext(settings, root / layout, engine.module, made.processor, engine)
    return GrpoTask(context, settings, made.mixture, Rewards(settings.rewards, root))


def window_of(task: GrpoTask, options: argparse.Namespace) -> StepWindow:
    """The work of a step whose answers are words drawn from a seed, with rewards from 0 to 1."""
    rng = random.Random(0)
    indices = task.sample_indices(0)
    asked = tuple(ask(task.mixture.samples[index], task.processor) for index in indices)
    words = range(100, 1000)

    def told() -> Told:
        return Told(tuple(rng.choices(words, k=options.tokens)), "", False, rng.random(), {"format": 1.0})

    groups = tuple(Group(n, tuple(told() for _ in range(options.answers))) for n in range(len(asked)))
    task.round = Round(0, tuple(one.sample_id for one in asked), asked, groups, ())
    return task.window(0, 0, 1)


def loss_of(task: GrpoTask, window: StepWindow) -> float:
    """The negative log-probability of all answers: the step's own loss is about 0, whatever the model says."""
    with torch.no_grad():
        sums = [task.context.engine.module(batch.inputs.rows) for batch in window.micro_batches]
    return float(torch.stack(sums).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=list(SHAPES), default="smollm2_135m", help="Models (default: %(default)s).")
    parser.add_argument("--prompts", type=int, default=2, help="Prompts of a step (default: %(default)s).")
    parser.add_argument("--answers", type=int, default=8, help="Answers to a prompt (default: %(default)s).")
    parser.add_argument("--tokens", type=int, default=40, help="Tokens of an answer (default: %(default)s).")
    parser.add_argument("--rounds", type=int, default=2, help="Rounds that are measured (default: %(default)s).")
    parser.add_argument("--dtype", choices=list(LOSSES_AGREE), default="float32", help="(default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_parts(root, *SHAPES[options.shapes])
        save_recipe(root / "data", images=options.prompts, conversations_per_image=1, text_tokens=(60, 60))
        tasks = {layout: task_of(root, layout, options) for layout in LAYOUTS}
        windows = {layout: window_of(task, options) for layout, task in tasks.items()}
        losses = [loss_of(tasks[layout], windows[layout]) for layout in LAYOUTS]
        apart = abs(losses[0] - losses[1]) / abs(losses[1])
        assert apart < LOSSES_AGREE[options.dtype], f"the layouts give losses {losses}"
        steps = in_turn(
            {
                layout: lambda layout=layout: train_step(tasks[layout], tasks[layout].context.engine, windows[layout])
                for layout in LAYOUTS
            },
            options.rounds,
        )
        sampled = in_turn(sampling_of(tasks["shared_prefix"], options), 1)
    print(machine() + "\n")
    report(options, windows, steps, sampled)


def sampling_of(task: GrpoTask, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """The answers to a prompt: together on its trunk, and one by one."""
    assert task.round is not None
    prompts, seeds = [task.round.asked[0].prompt], [list(range(options.answers))]
    decoding = Decoding(max_new_tokens=options.tokens, temperature=1.0)

    def sample(batch_size: int) -> None:
        sample_answers(task.context.model, task.processor, prompts, seeds, decoding, batch_size)

    return {"together": lambda: sample(options.answers), "one by one": lambda: sample(1)}


def report(
    options: argparse.Namespace,
    windows: dict[str, StepWindow],
    steps: dict[str, list[float]],
    sampled: dict[str, list[float]],
) -> None:
    """Print tables of both layouts of a step, and of both ways to sample."""
    slow = median(steps["none"])
    rows = [
        [
            name,
            sum(batch.token_count for batch in windows[layout].micro_batches),
            f"{median(steps[layout]):.2f}",
            f"{slow / median(steps[layout]):.2f}×",
            f"{spread(steps[layout]):.0%}",
        ]
        for layout, name in LAYOUTS.items()
    ]
    what = (
        f"{options.answers} answers of {options.tokens} tokens to each of {options.prompts} prompt(s), {options.dtype}"
    )
    print(f"A training step on {what}:\n")
    print(markdown_table(["layout", "tokens", "s", "against separate rows", "spread"], rows))
    print("\nSampling the answers to a prompt:\n")
    rows = [
        [name, f"{median(s):.2f}", f"{median(sampled['one by one']) / median(s):.2f}×"] for name, s in sampled.items()
    ]
    print(markdown_table(["answers", "s", "against one by one"], rows))


if __name__ == "__main__":
    main()
