"""The roads of the framework on the shadow device and on the CPU, as JSON lines for the tests that compare them.

    python -m tests.shadow.roads PARTS RECIPE ROOT

A process of its own: torch can't let go of a device that was put in its place.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

# Wrapped tensors don't live in inference mode, which decorators take on at import.
torch.inference_mode = lambda *_, **__: torch.no_grad()

from mllm.checkpoint.dual import build_dual  # noqa: E402
from mllm.contrastive.run import _build_batcher  # noqa: E402
from mllm.contrastive.settings import ContrastiveSettings  # noqa: E402
from mllm.contrastive.task import ContrastiveTask  # noqa: E402
from mllm.conversation.schema import ImagePart, Message, TextPart  # noqa: E402
from mllm.data.dataset import Mixture  # noqa: E402
from mllm.data.recipe import load_recipe  # noqa: E402
from mllm.finetune.run import start_model  # noqa: E402
from mllm.finetune.settings import FinetuneSettings  # noqa: E402
from mllm.inference.chat import ChatSession  # noqa: E402
from mllm.inference.decoding import Decoding  # noqa: E402
from mllm.inference.generate import Request, generate_answers  # noqa: E402
from mllm.inference.likelihood import score_answers  # noqa: E402
from mllm.model.trainable import apply_policy  # noqa: E402
from mllm.settings import validate_settings  # noqa: E402
from mllm.training.engine import TorchEngine  # noqa: E402
from mllm.training.loop import Trainer  # noqa: E402
from mllm.training.optimizer import build_optimizer  # noqa: E402
from tests.helpers import kernel_stand_ins  # noqa: E402
from tests.helpers.clip import settings as clip_settings  # noqa: E402
from tests.helpers.clip import write_pairs  # noqa: E402
from tests.helpers.runs import config  # noqa: E402
from tests.shadow import autocast  # noqa: E402
from tests.shadow.cases import POLICIES, TRAINING, Case  # noqa: E402
from tests.shadow.device import DEVICE, OnShadow, Wait, held, waits  # noqa: E402

STEPS = 2
LENGTH_MULTIPLE = 128
CPU = torch.device("cpu")


class NotingEngine(TorchEngine):
    """Plain torch on either device. For each step, the waits up to the end of the last backward, and all; of the first,
    the gradient."""

    def __init__(self, module: Any, optim: Any, dtype: str, device: torch.device, noted: list[Wait]) -> None:
        module.to(device)
        if hasattr(module, "language_model"):
            module.language_model.tie_weights()  # the shadow's tensors can't be put into parameters: they are new ones
        super().__init__(module, build_optimizer(module, optim), optim, dtype, device)
        self.gradient: torch.Tensor | None = None
        self.within: list[list[str]] = []
        self.whole: list[list[str]] = []
        self._noted, self._in_micro_batches = noted, 0

    def backward(self, loss_sum: torch.Tensor, scale: float | torch.Tensor, last: bool) -> None:
        super().backward(loss_sum, scale, last)
        self._in_micro_batches = len(self._noted)

    def step(self, lr_scale: float) -> float:
        if self.gradient is None:
            own = [held(p.grad) for p in self.module.parameters() if p.grad is not None]
            self.gradient = torch.cat([gradient.float().flatten() for gradient in own])
        norm = super().step(lr_scale)
        self.within.append([str(wait) for wait in self._noted[: self._in_micro_batches]])
        self.whole.append([str(wait) for wait in self._noted])
        self._noted.clear()
        return norm


def run(task: Any, module: Any, settings: Any, dtype: str, device: torch.device) -> tuple[NotingEngine, list[Any]]:
    """Some steps of `task`; returns the engine that noted them, and of each step its loss and gradient norm."""
    with OnShadow() if device == DEVICE else nullcontext(), waits() as noted:
        engine = NotingEngine(module, settings.optim, dtype, device, noted)
        noted.clear()
        trainer = Trainer(task, engine, settings.optim, settings.train, Path(settings.run_dir), lambda *_: None)
        metrics = [trainer._step(step, *trainer._window(step), 0.0) for step in range(STEPS)]
    return engine, [(step["loss"], step["grad_norm"]) for step in metrics]


def train(case: Case, parts: Path, recipe: Path, device: torch.device) -> tuple[NotingEngine, list[Any]]:
    values = config(parts, recipe, parts / "run", data__packing=case.packing)
    values["trainable"] = POLICIES[case.policy]
    values["train"] |= {"global_batch_size": 6, "micro_batch_size": 1}
    values["data"] |= {"group_by_image": case.packing == "shared_prefix", "workers": 0}
    settings = validate_settings(FinetuneSettings, values, "test")
    torch.manual_seed(0)
    model, processor = start_model(settings)
    apply_policy(model, settings.trainable)
    model.neftune_alpha = case.neftune_alpha
    model.attention_kernel = case.kernel if device == DEVICE else "segments"
    dtype = case.dtype if device == DEVICE else "float32"
    if dtype == "bfloat16":
        model.to(torch.bfloat16)
    if case.checkpointing and device == DEVICE:
        model.checkpoint_activations()
    mixture = Mixture(load_recipe(str(recipe)), 0, settings.data.group_by_image)
    task = case.task(mixture, processor, settings.data, settings.train, length_multiple=LENGTH_MULTIPLE)
    torch.manual_seed(0)
    return run(task, model.train(), settings, "autocast" if dtype == "autocast" else "float32", device)


def compared(name: str, found: tuple[NotingEngine, list[Any]], expected: tuple[NotingEngine, list[Any]]) -> dict:
    engine, series = found
    reference, expected_series = expected
    assert engine.gradient is not None and reference.gradient is not None
    off = (engine.gradient - reference.gradient).norm() / reference.gradient.norm()
    return {
        "name": name,
        "series": series,
        "expected": expected_series,
        "gradient_off": float(off),
        "within": engine.within,
        "whole": engine.whole,
    }


def training(parts: Path, recipe: Path) -> Iterator[dict]:
    @cache
    def on_cpu(packing: str, policy: str, neftune_alpha: float) -> tuple[NotingEngine, list[Any]]:
        plain = Case(packing, policy, "segments", "float32", neftune_alpha=neftune_alpha)
        return train(plain, parts, recipe, CPU)

    for name, case in TRAINING.items():
        expected = on_cpu(case.packing, case.policy, case.neftune_alpha)
        yield compared(name, train(case, parts, recipe, DEVICE), expected)


def contrastive(pairs: Path) -> Iterator[dict]:
    for kind in ("infonce", "sigmoid"):
        for chunk_size in (None, 3):
            results = []
            for device in (DEVICE, CPU):
                values = clip_settings(pairs, pairs.parent / "run", 1).model_dump(exclude_unset=True)
                # At the usual rate the second step's loss would tell how Adam's first one blew up the rounding.
                values["optim"] |= {"lr": 1e-5}
                values["model"] |= {"layout": "siglip", "embedding_width": 64} if kind == "sigmoid" else {}
                settings = validate_settings(ContrastiveSettings, values | {"loss": {"kind": kind}}, "test")
                batcher, _ = _build_batcher(settings)
                torch.manual_seed(0)
                module = build_dual(settings.model, batcher.tokenizer, kind == "sigmoid").train()
                results.append(run(ContrastiveTask(batcher, kind, chunk_size), module, settings, "float32", device))
            yield compared(f"{kind}, {'one chunk' if chunk_size is None else 'chunks'}", *results)


def answers(parts: Path, recipe: Path, device: torch.device) -> dict[str, Any]:
    """Greedy and sampled answers, a chat that takes a turn back, and log-probabilities."""
    settings = validate_settings(FinetuneSettings, config(parts, recipe, parts / "run"), "test")
    torch.manual_seed(0)
    model, processor = start_model(settings)
    image = str(recipe.parent / "red.png")

    def asked(text: str) -> Request:
        return Request((Message(role="user", content=(ImagePart(), TextPart(text=text))),), (image,))

    requests = [asked("what is this"), asked("what is this a cat and a dog red blue"), asked("hello world")]
    decodings = [Decoding(5, temperature=0.7, top_p=0.9, top_k=5), Decoding(5), Decoding(5, temperature=1.0)]
    with OnShadow() if device == DEVICE else nullcontext():
        model.to(device).eval()
        model.language_model.tie_weights()
        greedy = generate_answers(model, processor, requests, Decoding(6, logprobs=True, top_logprobs=2))
        torch.manual_seed(0)
        sampled = generate_answers(model, processor, requests, decodings)
        chat = ChatSession(model, processor, max_new_tokens=5)
        said = [chat.ask("what is this", [image]), chat.ask("and the dog")]
        chat.undo()
        said.append(chat.ask("hello"))
        scores = score_answers(model, processor, [requests[0], requests[0], requests[1]], ["red", "a cat", "yes"])
    return {
        "greedy": [answer.text for answer in greedy],
        "sampled": [list(answer.token_ids) for answer in sampled],
        "chat": said,
        "scores": scores,
    }


def kinds_of_waits() -> dict[str, Any]:
    """Of each way to wait for the device, and of each way not to, what was noted."""
    with OnShadow(), waits() as noted:
        value, mask, places = torch.ones(3, device=DEVICE), torch.ones(3, device=DEVICE) > 0, torch.zeros(2).long()
        on_device, graph = places.to(DEVICE), torch.ones(3, device=DEVICE, requires_grad=True)
        spliced = graph.masked_scatter(mask, torch.ones(3, device=DEVICE, requires_grad=True)).sum()
        ways = {
            "item": lambda: value[0].item(),
            "bool": lambda: bool(mask[0]),
            "if": lambda: 1 if mask[0] else 0,
            "tolist": lambda: value.tolist(),
            "nonzero": lambda: mask.nonzero(),
            "pick by mask": lambda: value[mask],
            "unique": lambda: value.unique_consecutive(),
            "equal": lambda: torch.equal(value, value),
            "to the host": lambda: value.cpu(),
            "from a list": lambda: torch.tensor([1.0], device=DEVICE),
            "from pageable memory": lambda: places.to(DEVICE),
            "backward of masked_scatter": lambda: spliced.backward(),
        }
        not_waiting = {
            "pick by places": lambda: value.index_select(0, on_device),
            "masked fill": lambda: value.masked_fill(mask, 0.0),
            "made there": lambda: torch.full((), 2.0, device=DEVICE),
            "ahead": lambda: places.to(DEVICE, non_blocking=True),
            "already there": lambda: value.to(DEVICE),
        }
        found = []
        for kinds in (ways, not_waiting):
            found.append({})
            for name, way in kinds.items():
                noted.clear()
                way()
                found[-1][name] = [str(wait) for wait in noted]
        try:
            mixed = str(value + torch.ones(3))
        except RuntimeError as error:
            mixed = str(error)
    return {"name": "kinds of waits", "waits": found[0], "none": found[1], "mixed": mixed}


def main(parts: Path, recipe: Path, root: Path) -> None:
    """parts, recipe: as the fixtures of those names make them. root: an empty directory."""
    torch.set_num_threads(1)
    kernel_stand_ins.register()
    autocast.register()
    for record in (*training(parts, recipe), *contrastive(write_pairs(root))):
        print(json.dumps(record), flush=True)
    print(json.dumps(kinds_of_waits()))
    found, expected = (answers(parts, recipe, device) for device in (DEVICE, CPU))
    print(json.dumps({"name": "answers", "found": found, "expected": expected}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
