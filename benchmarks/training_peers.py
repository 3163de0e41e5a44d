"""One training run in several ways: ours by packing, and transformers' LLaVA of the same layout under its Trainer.

All start from the same weights and see the same samples in the same steps: their losses have to agree before anything is
timed. Images are squares (`LlavaForConditionalGeneration`) or, with `tiling: anyres`, tiles (`LlavaNext…`).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from contenders import serve
from PIL import Image
from torch.utils.data import Dataset
from training_race import WARM_UP, InOrder, our_steps, race, report, their_steps
from transformers import AutoModelForImageTextToText, TrainerCallback, TrainingArguments
from transformers.utils import is_flash_attn_2_available
from workloads import SHAPES, save_parts, save_recipe, settings_of

from mllm.batch import IGNORE_INDEX
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.start import load_processor
from mllm.data.dataset import Mixture
from mllm.data.example import render_example
from mllm.data.recipe import load_recipe
from mllm.finetune.run import start_model
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import InstructionTask
from mllm.model.multimodal import MultimodalLM
from mllm.processor import Processor

OURS = {"ours": "shared_prefix", "ours, samples packed": "samples", "ours, a row a sample": "none"}
PEER = "transformers + Trainer"
IMAGE = {"fit": "crop"}


def compare(script: str, options: argparse.Namespace, trainable: dict[str, str], variants: list[str]) -> None:
    """Prepare weights and data once, run every contender in turn, print a table; or, with --worker, be a contender."""
    if options.worker:
        settings = _settings(options, trainable)
        serve(lambda: _peer(settings, options) if options.worker == PEER else our_steps(settings, options.steps))
        return
    with TemporaryDirectory() as folder:
        root = Path(folder)
        text, vision = SHAPES[options.shape]
        layers = options.layers or text["num_hidden_layers"]
        save_parts(root / "parts", text | {"num_hidden_layers": layers}, vision)
        save_recipe(root / "data", options.images, options.questions, tuple(options.words))
        options.root = root
        model, processor = start_model(_settings(options, trainable))
        assert isinstance(model, MultimodalLM)
        export_llava(model, processor, root / "peer")
        found = race(script, options, [v for v in [*variants, PEER] if not options.only or v in options.only], PEER)
    report(options, found, PEER)


def _settings(options: argparse.Namespace, trainable: dict[str, str]) -> FinetuneSettings:
    packing = OURS.get(options.worker, "none")
    return settings_of(
        options.root / "parts",
        options.root / "data" / "recipe.yaml",
        options.root / "run",
        trainable=trainable,
        model={"image": getattr(options, "image", IMAGE)},
        data={"packing": packing, "group_by_image": True, "max_length_tokens": options.row},
        train={"global_batch_size": options.global_batch, "dtype": options.dtype},
    )


class _Samples(Dataset[dict[str, Any]]):
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

    def trainer(arguments: dict[str, Any], clock: TrainerCallback) -> InOrder:
        own = TrainingArguments(**arguments, remove_unused_columns=False)
        return InOrder(model=llava, args=own, train_dataset=samples, data_collator=_padded, callbacks=[clock])

    return their_steps(options, settings.optim.lr, trainer)
