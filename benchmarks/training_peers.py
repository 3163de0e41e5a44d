"""One training run in several ways: ours by packing, and transformers' LLaVA of the same layout under its Trainer.

All start from the same weights and see the same samples in the same steps: their losses have to agree before anything is
timed. Images are squares (`LlavaForConditionalGeneration`) or, with `tiling: anyres`, tiles (`LlavaNext…`).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from contenders import Contender, serve
from measuring import machine, markdown_table, spread
from PIL import Image
from torch.utils.data import Dataset, SequentialSampler
from transformers import AutoModelForImageTextToText, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import is_flash_attn_2_available
from workloads import LOSSES_AGREE, SHAPES, prepare, save_parts, save_recipe, settings_of

from mllm.batch import IGNORE_INDEX
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.start import load_processor
from mllm.data.dataset import Mixture
from mllm.data.example import render_example
from mllm.data.recipe import load_recipe
from mllm.finetune.run import start_model
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import InstructionTask
from mllm.processor import Processor

OURS = {"ours": "shared_prefix", "ours, samples packed": "samples", "ours, a row a sample": "none"}
PEER = "transformers + Trainer"
WARM_UP = 2  # untimed steps of a round: until the second both sides still ask the kernel for memory
IMAGE = {"fit": "crop"}


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--global-batch", type=int, default=20, help="samples an optimizer step")
    parser.add_argument("--peer-batch", type=int, default=10, help="samples the peer puts through at once")
    parser.add_argument("--row", type=int, default=1280, help="tokens of our longest row")
    parser.add_argument("--steps", type=int, default=2, help="timed optimizer steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "autocast"), default="autocast")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2_135m", help="of language model and encoder")
    parser.add_argument("--layers", type=int, help="of the language model; all that its shape has")
    parser.add_argument("--only", nargs="*", help="run these contenders alone")
    parser.set_defaults(image=IMAGE, subcommand=())
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    return parser


def compare(script: str, options: argparse.Namespace, trainable: dict[str, str], variants: list[str]) -> None:
    """Prepare weights and data once, run every contender in turn, print a table; or, with --worker, be a contender."""
    if options.worker:
        settings = _settings(options, trainable)
        serve((lambda: _peer(settings, options)) if options.worker == PEER else (lambda: _ours(settings, options)))
        return
    with TemporaryDirectory() as folder:
        root = Path(folder)
        text, vision = SHAPES[options.shape]
        layers = options.layers or text["num_hidden_layers"]
        save_parts(root / "parts", text | {"num_hidden_layers": layers}, vision)
        save_recipe(root / "data", options.images, options.questions, tuple(options.words))
        options.root = root
        export_llava(*start_model(_settings(options, trainable)), root / "peer")
        found = _race(script, options, root, [v for v in [*variants, PEER] if not options.only or v in options.only])
    _report(options, found)


def _race(script: str, options: argparse.Namespace, root: Path, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    passed = ("global_batch", "peer_batch", "row", "steps", "dtype")
    common = [part for key in passed for part in (f"--{key.replace('_', '-')}", str(getattr(options, key)))]
    contenders = {}
    for number, name in enumerate(names):
        worker = [*options.subcommand, "--worker", name, "--root", str(root), *common]
        contenders[name] = Contender(script, worker, root / f"{number}.log")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, contender in contenders.items():
            found[name].append(contender.run())
            print(f"{name}: {json.dumps(found[name][-1])}", flush=True)
        _check_losses(found, LOSSES_AGREE[options.dtype])
    for contender in contenders.values():
        contender.close()
    return found


def _check_losses(found: dict[str, list[dict[str, Any]]], within: float) -> None:
    """Raise SystemExit unless the first step's loss, with weights that are still the same, is one for all."""
    first = {name: rounds[0]["losses"][0] for name, rounds in found.items()}
    if max(first.values()) - min(first.values()) > within * min(first.values()):
        raise SystemExit(f"the losses of the first step differ by more than {within:g}: {first}")


def _report(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    print(f"\n{machine()}, {options.dtype}, {options.global_batch} samples a step")
    print(f"the peer takes {options.peer_batch} samples at once, ours rows of up to {options.row} tokens\n")
    seconds = {name: [second for r in rounds for second in r["seconds"]] for name, rounds in found.items()}
    peak = {name: rounds[-1]["peak_bytes"] for name, rounds in found.items()}
    rows = []
    for name, taken in seconds.items():
        rate = options.global_batch / median(taken)
        against = [""] * 2
        if PEER in found and name != PEER:
            against = [f"{median(seconds[PEER]) / median(taken):.2f}×", f"{peak[name] / peak[PEER]:.2f}×"]
        loss = found[name][0]["losses"][0]
        rows.append([name, f"{rate:.3f}", against[0], f"{peak[name] / 2**30:.2f}", against[1], f"{loss:.6f}"])
    header = ["", "samples/s", "against the peer", "peak memory, GiB", "against the peer", "loss of step 1"]
    print(markdown_table(header, rows))
    print(f"\nspread of the step times: {max(spread(taken) for taken in seconds.values()):.2f}")


def _settings(options: argparse.Namespace, trainable: dict[str, str]) -> FinetuneSettings:
    packing = OURS.get(options.worker, "none")
    return settings_of(
        options.root / "parts",
        options.root / "data" / "recipe.yaml",
        options.root / "run",
        trainable=trainable,
        model={"image": options.image},
        data={"packing": packing, "group_by_image": True, "max_length_tokens": options.row},
        train={"global_batch_size": options.global_batch, "dtype": options.dtype},
    )


def _ours(settings: FinetuneSettings, options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    task, engine = prepare(settings)
    step = 0

    def run() -> dict[str, Any]:
        nonlocal step
        seconds, losses = [], []
        for _ in range(WARM_UP + options.steps):
            started = time.perf_counter()
            window = task.window(step, 0, 1)
            targets = sum(micro_batch.target_count for micro_batch in window.micro_batches)
            total = 0.0
            for number, micro_batch in enumerate(window.micro_batches):
                with engine.autocast():
                    loss = task.loss(engine.module, micro_batch).loss_sum
                engine.backward(loss, 1.0 / targets, last=number == len(window.micro_batches) - 1)
                total += float(loss.detach())
            engine.step(1.0)
            seconds.append(time.perf_counter() - started)
            losses.append(total / targets)
            step += 1
        return {"seconds": seconds[WARM_UP:], "losses": losses}

    return run


class _Samples(Dataset):
    """The run's samples in its own order, prepared as a user of LlavaProcessor would: pixels for every sample."""

    def __init__(self, task: InstructionTask, processor: Processor, steps: int) -> None:
        samples = [task.mixture.samples[i] for step in range(steps) for i in task.sample_indices(step)]
        self.examples = [render_example(sample, processor, task.data.max_length_tokens) for sample in samples]
        self.processor = processor

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        tokens = example.tokens
        labels = [i if s else IGNORE_INDEX for i, s in zip(tokens.input_ids, tokens.supervised, strict=True)]
        entry = {"input_ids": tokens.input_ids, "labels": labels}
        with Image.open(example.images[0]) as image:
            tiles = self.processor.preparer.tiles(image.convert("RGB"), tokens.visuals[0].crops)
            size = (image.height, image.width)
        if tokens.visuals[0].arrangement is None:
            return entry | {"pixel_values": tiles[0]}
        return entry | {"pixel_values": torch.stack(tiles), "image_sizes": size}


def _padded(entries: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(entry["input_ids"]) for entry in entries)

    def filled(name: str, value: int) -> torch.Tensor:
        return torch.tensor([[*entry[name], *[value] * (longest - len(entry[name]))] for entry in entries])

    lengths = torch.tensor([[len(entry["input_ids"])] for entry in entries])
    sizes = (
        {"image_sizes": torch.tensor([entry["image_sizes"] for entry in entries])}
        if "image_sizes" in entries[0]
        else {}
    )
    return sizes | {
        "input_ids": filled("input_ids", 0),
        "labels": filled("labels", IGNORE_INDEX),
        "attention_mask": (torch.arange(longest)[None] < lengths).long(),
        "pixel_values": torch.stack([entry["pixel_values"] for entry in entries]),
    }


class _InOrder(Trainer):
    def _get_train_sampler(self, dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(dataset or self.train_dataset)


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.starts: list[float] = []
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.starts.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.starts[-1])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def _peer(settings: FinetuneSettings, options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    processor = load_processor(settings.model)
    mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, settings.data.group_by_image)
    task = InstructionTask(mixture, processor, settings.data, settings.train)
    samples = _Samples(task, processor, WARM_UP + options.steps)
    # Its best attention where it is installed; else transformers chooses.
    flash = "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else None
    llava = AutoModelForImageTextToText.from_pretrained(
        options.root / "peer", dtype=torch.float32, attn_implementation=flash
    )
    llava.model.vision_tower.requires_grad_(False)
    if settings.trainable.language_model == "frozen":
        llava.model.language_model.requires_grad_(False)
        llava.lm_head.requires_grad_(False)

    def run() -> dict[str, Any]:
        clock = _Clock()
        trainer = _InOrder(
            model=llava,
            args=TrainingArguments(
                output_dir=str(options.root / "trainer"),
                per_device_train_batch_size=options.peer_batch,
                gradient_accumulation_steps=options.global_batch // options.peer_batch,
                max_steps=WARM_UP + options.steps,
                learning_rate=settings.optim.lr,
                lr_scheduler_type="constant",
                bf16=options.dtype == "autocast",
                use_cpu=not torch.cuda.is_available(),
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                remove_unused_columns=False,
                disable_tqdm=True,
            ),
            train_dataset=samples,
            data_collator=_padded,
            callbacks=[clock],
        )
        trainer.train()
        return {"seconds": clock.seconds[WARM_UP:], "losses": clock.losses}

    return run
