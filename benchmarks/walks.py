"""What of `mllm` four walks execute, traced on tiny models: a training step, a whole run, a question, a chat turn.

Run by `house.py` as a process of its own, in a tree that may be another than this file's: nothing but commands and names that
every tree has is used.
"""

import argparse
import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TREE = Path.cwd()
PARSES_ARGUMENTS = "command.py"
STEPS = 4
SPECIALS = ["<|pad|>", "<|im_start|>", "<|im_end|>"]


class Call(NamedTuple):
    """A call of a function of `mllm`; caller: the place in the list of the call that it came out of, -1 for none."""

    module: str
    function: str
    caller: int
    is_main: bool


class Trace:
    """The functions of `mllm` in the order of their calls; what runs while a module is imported is left out."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._files: dict[str, str | None] = {}
        self._own = threading.local()
        self._main = threading.get_ident()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Add every call of this thread and of those that it starts."""
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return"):
            return
        code, own = frame.f_code, self._own.__dict__
        open_calls: list[int] = own.setdefault("open_calls", [])
        if code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__":
            own["imports"] = own.get("imports", 0) + (1 if event == "call" else -1)
        module = self._module(code.co_filename)
        if module is None or own.get("imports") or code.co_name == "<module>":
            return
        if event == "call":
            caller = open_calls[-1] if open_calls else -1
            open_calls.append(len(self.calls))
            self.calls.append(Call(module, _name(code), caller, threading.get_ident() == self._main))
        elif open_calls:
            open_calls.pop()

    def _module(self, file: str) -> str | None:
        """The path of a file of `mllm` within the tree; None for any other."""
        if file not in self._files:
            path = Path(file)
            self._files[file] = str(path.relative_to(TREE)) if path.is_relative_to(TREE / "mllm") else None
        return self._files[file]


def _name(code: CodeType) -> str:
    return getattr(code, "co_qualname", code.co_name)  # Python 3.10 has no qualified names here


def route(calls: Sequence[Call], room: str, levels: int) -> list[str]:
    """The modules of a room that a reader stays in who follows the calls and reads each function where it is first called.

    Only functions of the room count (what is called in other rooms isn't followed), and of these the ones that are reached
    through fewer than `levels` others of the room; the file that parses arguments is none of them, and what has no name
    belongs to the function that it stands in. A stay lasts as long as the next function is of the same module.
    """
    depths: list[int] = []
    stays: list[str] = []
    read = set()
    for call in calls:
        is_step = call.module.startswith(f"mllm/{room}/") and not call.function.endswith(">")
        is_step = is_step and Path(call.module).name != PARSES_ARGUMENTS
        depth = depths[call.caller] if call.caller >= 0 else 0
        depths.append(depth + is_step)
        if is_step and depth < levels and call[:2] not in read:
            read.add(call[:2])
            if not stays or stays[-1] != call.module:
                stays.append(call.module)
    return stays


def figures(calls: Sequence[Call]) -> dict[str, int]:
    """Modules and functions that were executed; `modules with data` counts the threads that make batches, too."""
    here = [call for call in calls if call.is_main]
    return {
        "modules": len({call.module for call in here}),
        "modules with data": len({call.module for call in calls}),
        "functions": len({call[:2] for call in here}),
    }


def save_parts(root: Path) -> None:
    """Directories `clip` and `lm` with models of a few thousand parameters, at random."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=4)).save_pretrained(root / "clip")
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(root / "clip")
    vocabulary = {token: n for n, token in enumerate([*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "extra_special_tokens": ["<|im_start|>"]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(root / "lm")
    config = LlamaConfig(
        **sizes,
        vocab_size=len(vocabulary),
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=vocabulary["<|im_end|>"],
    )
    LlamaForCausalLM(config).save_pretrained(root / "lm")


def save_data(root: Path) -> None:
    """Training samples, a recipe, the settings of a run of a few steps, and a file of questions."""
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        Image.new("RGB", (20, 12), colour).save(root / f"{name}.png")
    samples = [
        {
            "id": f"s{n}",
            "images": ["red.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
                {"role": "assistant", "content": "red " * (1 + n % 3)},
            ],
        }
        for n in range(4 * STEPS)
    ]
    (root / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
    source = {"path": str(root / "samples.jsonl"), "image_root": str(root)}
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": "tiny", "sources": [source]}))
    settings = {
        "run_dir": str(root / "run"),
        "model": {
            "vision_encoder": {"path": str(root / "clip")},
            "language_model": {"path": str(root / "lm")},
            "prompt_format": "chatml",
        },
        "trainable": {"language_model": "full", "vision_encoder": "full"},
        "data": {"recipe": str(root / "recipe.yaml"), "max_length_tokens": 128},
        "optim": {"lr": 1e-3},
        "train": {"global_batch_size": 4, "trackers": []},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    lines = [{"image": f"{name}.png", "question": "What colour?", "answer": name} for name in ("red", "blue")]
    (root / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))


def run_script(script: str, *words: str) -> None:
    """A script of the tree, as `python SCRIPT WORDS` runs it, in silence."""
    sys.argv = [script, *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            assert not end.code, f"{script} ended with {end.code}"


def training(root: Path) -> tuple[list[Call], list[Call]]:
    """The calls of one step, the third, and of the whole run, from its settings to the saved model."""
    trace, ends = Trace(), []
    hook = register_optimizer_step_post_hook(lambda *_: ends.append(len(trace.calls)))
    with trace.recording():
        run_script("train/finetune.py", "--config", str(root / "config.yaml"))
    hook.remove()
    return trace.calls[ends[1] : ends[2]], trace.calls


def question(root: Path) -> list[Call]:
    """The calls of an evaluation of a question about two images and its controls, from the command line to the report."""
    trace = Trace()
    words = ("--model", root / "run" / "final", "--benchmarks", root / "own.jsonl", "--output", root / "eval")
    with trace.recording():
        run_script("eval/run.py", *map(str, words))
    return trace.calls


def chat_turn(root: Path) -> list[Call]:
    """The calls of the second turn of a chat about an image."""
    import mllm

    session = mllm.ChatSession(*mllm.load(str(root / "run" / "final")))
    session.ask("What is this?", images=[str(root / "red.png")])
    trace = Trace()
    with trace.recording():
        session.ask("Why?")
    return trace.calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="The file that the figures are written to, one JSON object.")
    output = parser.parse_args().output
    sys.path.insert(0, str(TREE))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["MLLM_CACHE_DIR"] = str(root / "cache")
        save_parts(root)
        save_data(root)
        step, run = training(root)
        asked = question(root)
        walks = {"training step": step, "whole run": run, "question": asked, "chat turn": chat_turn(root)}
    found = {f"{name}: {what}": count for name, calls in walks.items() for what, count in figures(calls).items()}
    for levels in (2, 3):
        stays = route(asked, "evaluation", levels)
        found[f"question: stays in {levels} levels of evaluation"] = len(stays)
        found[f"question: return trips in {levels} levels of evaluation"] = len(stays) - len(set(stays))
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
