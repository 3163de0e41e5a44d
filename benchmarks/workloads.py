"""Models, data and runs of stated shapes, which the benchmarks measure.

Weights are random and data is made here from a seed: a benchmark needs no download and measures the same work everywhere.
"""

import json
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mllm.checkpoint.start import text_config
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.finetune.flops import unit_flops
from mllm.finetune.run import start_model
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import InstructionTask
from mllm.kernels.choice import choose_kernel
from mllm.model.trainable import apply_policy
from mllm.settings import validate_settings
from mllm.training.build_engine import start_engine
from mllm.training.engine import Engine
from mllm.training.feed import Feed
from mllm.training.task import StepWindow

SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
CLIP_B16 = {  # 14 × 14 = 196 image tokens
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
LLAMA_1B = {  # Llama-3.2-1B's shape
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 16384,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
CLIP_L14_336 = {  # 24 × 24 = 576 image tokens
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
LOSSES_AGREE = {"float32": 1e-5, "autocast": 5e-3}  # relative, by the precision of matrix products
SHAPES = {
    "smollm2_135m": (SMOLLM2_135M, CLIP_B16),
    "llama_1b": (LLAMA_1B, CLIP_L14_336),
    "tiny": (  # to try a script
        SMOLLM2_135M | {"num_hidden_layers": 2, "vocab_size": 2048},
        CLIP_B16 | {"num_hidden_layers": 3, "image_size": 64},
    ),
}
SPECIALS = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<unk>", "<image>"]


def word_tokenizer(vocabulary: int, specials: Sequence[str] = (), **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer of `vocabulary` ids in which every word `w0`, `w1`, … is one token: lengths can be chosen exactly.

    specials: further special tokens. named: special tokens that it has as attributes.
    """
    further = [*specials, *named.values()]
    names = [*SPECIALS, *further, "user", "assistant", "system"]
    names += [f"w{n}" for n in range(vocabulary - len(names))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
        extra_special_tokens=["<|im_start|>", "<image>", *further],
        model_specific_special_tokens=named,
    )


def save_parts(
    root: Path, text: dict[str, Any] = SMOLLM2_135M, vision: dict[str, Any] = CLIP_B16, seed: int = 0
) -> None:
    """Write `root/clip` and `root/lm`: a CLIP-shaped encoder and a Llama-shaped language model of random weights."""
    torch.manual_seed(seed)
    side = vision["image_size"]
    CLIPVisionModel(CLIPVisionConfig(**vision)).save_pretrained(root / "clip")
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        root / "clip"
    )
    tokenizer = word_tokenizer(text["vocab_size"])
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(**text, **ids)).save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")


def save_recipe(
    root: Path,
    images: int,
    conversations_per_image: int,
    text_tokens: tuple[int, int],
    seed: int = 0,
    size: tuple[int, int] = (240, 320),
) -> Path:
    """Write a recipe of `images` pictures of `size` (height, width); returns its path.

    Each conversation has between `text_tokens[0]` and `text_tokens[1]` words, drawn uniformly, a third of them (at most
    20) its question: the chat format adds its special tokens to that.
    """
    rng = random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "samples.jsonl", "w", encoding="utf-8") as file:
        for n in range(images):
            colour = tuple(rng.randrange(256) for _ in range(3))
            Image.new("RGB", size[::-1], colour).save(root / f"{n}.png")
            for turn in range(conversations_per_image):
                words = [f"w{rng.randrange(1000)}" for _ in range(rng.randint(*text_tokens))]
                asked = min(20, len(words) // 3)
                question = [{"type": "image"}, {"type": "text", "text": " ".join(words[:asked])}]
                messages = [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": " ".join(words[asked:])},
                ]
                file.write(json.dumps({"id": f"{n}-{turn}", "messages": messages, "images": [f"{n}.png"]}) + "\n")
    source = {"path": str(root / "samples.jsonl"), "image_root": str(root)}
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": "benchmark", "sources": [source]}))
    return root / "recipe.yaml"


def settings_of(parts: Path, recipe: Path, run_dir: Path, **sections: dict[str, Any]) -> FinetuneSettings:
    """Settings of a second-stage run (projector and language model learn); `sections` add to or replace its keys."""
    values: dict[str, dict[str, Any]] = {
        "model": {
            "vision_encoder": {"path": str(parts / "clip")},
            "language_model": {"path": str(parts / "lm")},
            "prompt_format": "chatml",
        },
        "trainable": {"language_model": "full"},
        "data": {"recipe": str(recipe), "max_length_tokens": 2048, "packing": "shared_prefix", "group_by_image": True},
        "optim": {"lr": 2e-5},
        "train": {"global_batch_size": 20},
        "engine": {"kind": "torch"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return validate_settings(FinetuneSettings, {"run_dir": str(run_dir), **values}, "benchmark")


def prepare(settings: FinetuneSettings) -> tuple[InstructionTask, Engine]:
    """The task and the engine of a run, as `finetune` puts them together, without its callbacks and checkpoints."""
    mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, settings.data.group_by_image)
    kernel = choose_kernel(settings.train.attention, settings.train.dtype, text_config(settings.model))
    model, processor = start_model(settings, kernel)
    apply_policy(model, settings.trainable)
    if settings.train.gradient_checkpointing:
        model.checkpoint_activations()
    costs = unit_flops(model)
    engine = start_engine(settings.engine, settings.optim, settings.train)(model.train())
    return InstructionTask(mixture, processor, settings.data, settings.train, costs), engine


def train_step(
    task: InstructionTask,
    engine: Engine,
    window: StepWindow,
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """One optimizer step on a window that is already prepared: forward, backward, clipping, AdamW.

    within: a context for the computation of each micro-batch.
    """
    targets = sum(micro_batch.target_count for micro_batch in window.micro_batches)
    feed = Feed(window.micro_batches, engine.device)
    for micro_batch in feed:
        with within():
            with engine.autocast():
                loss = task.loss(engine.module, micro_batch).loss_sum
            engine.backward(loss, 1.0 / targets, last=not feed)
            del loss
    engine.step(1.0)
