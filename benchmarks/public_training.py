"""Training of a public model of transformers: ours by packing, and TRL's SFTTrainer, which packs no images.

    python benchmarks/public_training.py --peer-python VENV/bin/python --peer-batch 5          # five conversations an image
    python benchmarks/public_training.py --peer-python VENV/bin/python --questions 1 --images 100
    python benchmarks/public_training.py --peer-python VENV/bin/python --kind tiles            # Idefics3's layout, SmolVLM's

VENV has TRL beside what this package needs. A language model of SmolLM2-135M's shape and an encoder of CLIP-B's in the layout
of Qwen2.5-VL (`axes`: positions along three axes, 192 tokens a picture) or of Idefics3 (`tiles`: five tiles of 64 tokens);
random weights. The encoder is frozen, all else learns. Both see the same conversations in the same order in every step, and
the losses of the first step have to agree. TRL refuses `packing` and `padding_free` for data with images; it gets its best
that is left: rows padded to the longest of a batch, its chunked loss on answers alone, no activation checkpointing.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from contenders import serve
from datasets import Dataset, Image
from training_race import WARM_UP, InOrder, arguments, our_steps, race, report, their_steps
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from workloads import CLIP_B16, SHAPES, save_recipe, word_tokenizer

from mllm.checkpoint import public
from mllm.checkpoint.peer_processor import without_other_parts
from mllm.conversation.schema import Sample
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.finetune.run import start_model
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import InstructionTask
from mllm.model.public import PublicModel, PublicProcessor, wrap
from mllm.model.trainable import apply_policy
from mllm.settings import validate_settings

OURS = {"ours": "shared_prefix", "ours, samples packed": "samples", "ours, a row a sample": "none"}
PEER = "TRL's SFTTrainer"
PICTURE = (336, 448)  # height, width
TRAINABLE = {"vision_encoder": "frozen", "projector": "full", "language_model": "full"}
# No line feed after a turn, so that a completion of TRL's is what is learned here: the answer and its end.
TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}{{ 'IMAGE ' }}{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)


def main() -> None:
    parser = arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter))
    parser.add_argument("--peer-python", help="the Python that has TRL; this one unless given")
    parser.add_argument("--kind", choices=KINDS, default="axes", help="layout of the model")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--questions", type=int, default=5, help="conversations an image")
    parser.add_argument("--words", type=int, nargs=2, default=(30, 110), help="shortest and longest conversation")
    options = parser.parse_args()
    if options.worker:
        settings = _settings(options)
        serve(lambda: _peer(settings, options) if options.worker == PEER else our_steps(settings, options.steps))
        return
    with TemporaryDirectory() as folder:
        options.root = Path(folder)
        text, vision = SHAPES[options.shape]
        text = text | {"num_hidden_layers": options.layers or text["num_hidden_layers"]}
        torch.manual_seed(0)
        model, processor = wrap(*KINDS[options.kind](text, vision["num_hidden_layers"]))
        public.write(options.root / "peer", model, processor, model.state_dict())
        save_recipe(options.root / "data", options.images, options.questions, tuple(options.words), size=PICTURE)
        names = [name for name in [*OURS, PEER] if not options.only or name in options.only]
        found = race(__file__, options, names, PEER, options.peer_python)
    report(options, found, PEER)


def _axes(text: dict[str, Any], layers: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2.5-VL's layout: a patch for each 14 × 14 pixels, four to a token, positions along time, height and width."""
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    tokenizer = word_tokenizer(text["vocab_size"], tuple(names.values()))
    pixels = transformers.Qwen2VLImageProcessorPil(patch_size=14, merge_size=2)
    kind = without_other_parts(transformers.Qwen2_5_VLProcessor)
    processor = kind(pixels, tokenizer, chat_template=TURNS.replace("IMAGE", image))
    eyes = {"depth": layers, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12, "patch_size": 14}
    config = transformers.Qwen2_5_VLConfig(
        text_config=_words(text) | {"rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12]}},
        vision_config=eyes | {"out_hidden_size": text["hidden_size"], "fullatt_block_indexes": [layers - 1]},
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def _tiles(text: dict[str, Any], layers: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Idefics3's layout, which is SmolVLM's: a picture and its four quarters of 256 × 256 pixels, 64 tokens each."""
    rows = [f"<row_{r}_col_{c}>" for r, c in itertools.product(range(1, 7), repeat=2)]
    tokenizer = word_tokenizer(
        text["vocab_size"], ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *rows)
    )
    pixels = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 512}, max_image_size={"longest_edge": 256})
    template = TURNS.replace("IMAGE", "<image>")
    processor = transformers.Idefics3Processor(pixels, tokenizer, image_seq_len=64, chat_template=template)
    eyes = CLIP_B16 | {"num_hidden_layers": layers, "image_size": 256}
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **_words(text)},
        vision_config=eyes,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=True,
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


KINDS = {"axes": _axes, "tiles": _tiles}


def _words(text: dict[str, Any]) -> dict[str, Any]:
    return text | {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _settings(options: argparse.Namespace) -> FinetuneSettings:
    values = {
        "run_dir": str(options.root / "run"),
        "model": {"init_from": str(options.root / "peer")},
        "trainable": TRAINABLE,
        "data": {
            "recipe": str(options.root / "data" / "recipe.yaml"),
            "packing": OURS.get(options.worker, "none"),
            "group_by_image": True,
            "max_length_tokens": options.row,
        },
        "optim": {"lr": 2e-5},
        "train": {"global_batch_size": options.global_batch, "dtype": options.dtype},
        "engine": {"kind": "torch"},
    }
    return validate_settings(FinetuneSettings, values, "benchmark")


def _entry(sample: Sample) -> dict[str, Any]:
    """A sample as TRL has it: a prompt, its completion, and the picture's file."""
    prompt, answer = ([message.model_dump()] for message in sample.messages)
    return {"prompt": prompt, "completion": answer, "images": [str(image) for image in sample.images]}


def _peer(settings: FinetuneSettings, options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    from trl import SFTConfig, SFTTrainer

    class SftInOrder(InOrder, SFTTrainer):
        pass

    model, processor = start_model(settings)
    assert isinstance(model, PublicModel) and isinstance(processor, PublicProcessor)
    apply_policy(model, settings.trainable)
    mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, settings.data.group_by_image)
    task = InstructionTask(mixture, processor, settings.data, settings.train)
    steps = WARM_UP + options.steps
    samples = [_entry(mixture.samples[i]) for step in range(steps) for i in task.sample_indices(step)]
    data = Dataset.from_list(samples).cast_column("images", [Image()])

    def trainer(arguments: dict[str, Any], clock: TrainerCallback) -> InOrder:
        return SftInOrder(
            model=model.peer,
            processing_class=processor.peer,
            args=SFTConfig(**arguments, max_length=None),
            train_dataset=data,
            callbacks=[clock],
        )

    return their_steps(options, settings.optim.lr, trainer)


if __name__ == "__main__":
    main()
