"""Preference tuning of a LLaVA: ours on shared trunks with a cached reference, and TRL's DPOTrainer.

    python benchmarks/preference.py --peer-python VENV/bin/python                     # five pairs an image
    python benchmarks/preference.py --peer-python VENV/bin/python --pairs 1 --images 25
    python benchmarks/preference.py --shape tiny --peer-python VENV/bin/python        # to try the script

VENV has TRL beside what this package needs. A language model of SmolLM2-135M's shape and an encoder of CLIP-B's in the layout
of transformers' LLaVA, random weights; the encoder is frozen, all else learns. Both see the same pairs in the same order in
every step, and their losses have to agree in the first steps, the second of which tells gradients apart.

`ours` shares the prompt between both answers and the image between its pairs, reads the reference from a file (whose pass is
timed once, before) and makes logits of answers alone. Each other line of ours gives one of these up. TRL computes the
reference in every step (it refuses to compute it ahead of training for images), and its chunked head reads every position.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import transformers
import yaml
from contenders import serve
from datasets import Dataset, Image
from training_race import WARM_UP, InOrder, arguments, our_steps, race, report, their_steps
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from workloads import SHAPES, save_recipe, word_tokenizer

from mllm.batch import Batch
from mllm.checkpoint import public
from mllm.conversation.pair import PreferencePair
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.finetune.run import start_model
from mllm.finetune.watching import RunContext
from mllm.model.interface import VisionLanguageModel
from mllm.model.public import PublicModel, PublicProcessor, wrap
from mllm.model.trainable import apply_policy
from mllm.preference.run import preference_task
from mllm.preference.settings import PreferenceSettings
from mllm.preference.task import PreferenceTask
from mllm.settings import validate_settings
from mllm.training.build_engine import start_engine
from mllm.training.engine import Engine


class Way(NamedTuple):
    """How a contender of ours lays pairs out, gets the reference, and which positions have logits."""

    packing: str = "shared_prefix"
    reference: str = "cached"
    all_logits: bool = False


OURS = {
    "ours": Way(),
    "ours, nothing shared": Way(packing="samples"),
    "ours, reference in the step": Way(reference="model"),
    "ours, logits everywhere": Way(all_logits=True),
}
PEER = "TRL's DPOTrainer"
TRAINABLE = {"vision_encoder": "frozen", "projector": "full", "language_model": "full"}
AGREE = {
    "float32": 1e-4,
    "autocast": 2e-2,
}  # of the second step's losses, whose first update may differ in its last bits
TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}{{ '<image> ' }}{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)


def main() -> None:
    parser = arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter))
    parser.set_defaults(global_batch=5, peer_batch=5, steps=3, rounds=1)
    parser.add_argument("--peer-python", help="the Python that has TRL; this one unless given")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=5, help="pairs an image")
    parser.add_argument("--words", type=int, nargs=2, default=(60, 95), help="fewest and most words of a pair's side")
    options = parser.parse_args()
    if options.worker:
        settings = _settings(options)
        serve(lambda: _peer(settings, options) if options.worker == PEER else _ours(settings, options))
        return
    with TemporaryDirectory() as folder:
        options.root = Path(folder)
        text, vision = SHAPES[options.shape]
        text = text | {"num_hidden_layers": options.layers or text["num_hidden_layers"]}
        torch.manual_seed(0)
        model, processor = wrap(*_llava(text, vision))
        public.write(options.root / "peer", model, processor, model.state_dict())
        _save_pairs(options.root / "data", options.images, options.pairs, tuple(options.words))
        names = [name for name in [*OURS, PEER] if not options.only or name in options.only]
        found = race(__file__, options, names, PEER, options.peer_python)
    _check_second_steps(found, AGREE[options.dtype])
    report(options, found, PEER)
    passes = [round_["reference_pass_s"] for round_ in found.get("ours", []) if "reference_pass_s" in round_]
    if passes:
        print(f"\nthe reference's pass over all {options.images * options.pairs} pairs took {passes[0]:.1f} s")


def _check_second_steps(found: dict[str, list[dict[str, Any]]], within: float) -> None:
    """Raise SystemExit unless the losses behind one update are one for all: DPO's first loss is ln 2 whatever is computed."""
    second = {name: rounds[0]["losses"][1] for name, rounds in found.items()}
    if max(second.values()) - min(second.values()) > within * min(second.values()):
        raise SystemExit(f"the losses of the second step differ by more than {within:g}: {second}")
    print("losses of the first steps: " + json.dumps({name: rounds[0]["losses"] for name, rounds in found.items()}))


def _llava(text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, ProcessorMixin]:
    side, tokenizer = vision["image_size"], word_tokenizer(text["vocab_size"])
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = transformers.LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TURNS,
    )
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **text, **ids},
        vision_config={"model_type": "clip_vision_model", **vision},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=True,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _save_pairs(root: Path, images: int, pairs: int, words: tuple[int, int]) -> None:
    """The conversations of `save_recipe` with a second answer of about the same length."""
    save_recipe(root, images, pairs, words)
    rng = random.Random(1)
    lines = []
    for line in (root / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        chosen = record["messages"].pop()["content"]
        length = max(1, len(chosen.split()) + rng.randint(-5, 5))
        rejected = " ".join(f"w{rng.randrange(1000)}" for _ in range(length))
        lines.append(json.dumps(record | {"chosen": chosen, "rejected": rejected}))
    (root / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = {"path": str(root / "pairs.jsonl"), "reader": "pairs", "image_root": str(root)}
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": "pairs", "sources": [source]}), encoding="utf-8")


def _settings(options: argparse.Namespace) -> PreferenceSettings:
    way = OURS.get(options.worker, Way())
    values = {
        "run_dir": str(options.root / "run"),
        "model": {"init_from": str(options.root / "peer")},
        "trainable": TRAINABLE,
        "preference": {"reference": {"kind": way.reference}},
        "data": {
            "recipe": str(options.root / "data" / "recipe.yaml"),
            "packing": way.packing,
            "group_by_image": True,
            "max_length_tokens": options.row,
        },
        "optim": {"lr": 2e-5},
        "train": {"global_batch_size": options.global_batch, "dtype": options.dtype},
        "engine": {"kind": "torch"},
    }
    return validate_settings(PreferenceSettings, values, "benchmark")


def _ours(settings: PreferenceSettings, options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    if OURS[options.worker].all_logits:
        VisionLanguageModel.forward = _with_all_logits  # type: ignore[method-assign]
    passed: dict[str, float] = {}

    def prepared(settings: Any) -> tuple[PreferenceTask, Engine]:
        model, processor = start_model(settings)
        apply_policy(model, settings.trainable)
        engine = start_engine(settings.engine, settings.optim, settings.train)(model.train())
        mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, settings.data.group_by_image)
        context = RunContext(settings, Path(settings.run_dir) / str(id(passed)), model, processor, engine)
        task, callbacks = preference_task(context, mixture)
        started = time.perf_counter()
        for callback in callbacks:
            callback.on_start(0, 1)
        passed["reference_pass_s"] = time.perf_counter() - started
        return task, engine

    run = our_steps(settings, options.steps, prepared)
    return lambda: run() | passed


def _with_all_logits(
    self: VisionLanguageModel, batch: Batch, by_token: bool = False, temperature: float = 1.0
) -> torch.Tensor:
    """As transformers computes them: logits of every position, of which some are read."""
    chosen = self.logits(batch).flatten(0, 1).index_select(0, batch.target_places)
    return chosen.float().log_softmax(-1).gather(1, batch.target_ids[:, None])[:, 0]


def _entry(pair: PreferencePair) -> dict[str, Any]:
    """A pair as TRL has it."""
    chosen, rejected = ([side.messages[-1].model_dump()] for side in pair.sides)
    prompt = [message.model_dump() for message in pair.messages]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "images": [str(image) for image in pair.images]}


def _peer(settings: PreferenceSettings, options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    from trl import DPOConfig, DPOTrainer

    class DpoInOrder(InOrder, DPOTrainer):
        pass

    (model, processor), (reference, _) = start_model(settings), start_model(settings)
    assert (
        isinstance(model, PublicModel) and isinstance(reference, PublicModel) and isinstance(processor, PublicProcessor)
    )
    apply_policy(model, settings.trainable)
    mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, settings.data.group_by_image)
    size, steps = settings.train.global_batch_size, WARM_UP + options.steps
    order = [index for epoch in range(1 + steps * size // mixture.epoch_length) for index in mixture.order(epoch)]
    data = Dataset.from_list([_entry(mixture.samples[index]) for index in order[: steps * size]])
    data = data.cast_column("images", [Image()])

    def trainer(arguments: dict[str, Any], clock: TrainerCallback) -> InOrder:
        return DpoInOrder(
            model=model.peer,
            ref_model=reference.peer,
            processing_class=processor.peer,
            args=DPOConfig(**arguments, beta=settings.preference.beta, max_length=None),
            train_dataset=data,
            callbacks=[clock],
        )

    return their_steps(options, settings.optim.lr, trainer)


if __name__ == "__main__":
    main()
