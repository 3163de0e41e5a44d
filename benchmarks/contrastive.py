"""A training step of ours and of open_clip's: the same dual encoder, weights, pairs and precision.

    pip install --no-deps open_clip_torch
    python benchmarks/contrastive.py

Pairs are tensors made beforehand, so neither reads images. open_clip's step is the one of its training script: forward,
loss, backward, AdamW, clamped temperature; with accumulation, its own way of caching features. Ours clips the gradient too.
Peak memory is a whole process's, libraries and weights included.
"""

import argparse
import importlib.util
import json
import math
import random
import sys
import time
import types
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import MagicMock

import torch
from contenders import Contender, serve
from measuring import machine, markdown_table, spread
from transformers import CLIPConfig, CLIPModel

from mllm.checkpoint.open_clip_names import to_open_clip
from mllm.contrastive.data import PairBatch
from mllm.contrastive.decoding import PairDecoder
from mllm.contrastive.negatives import describes, same, words_of
from mllm.contrastive.task import ContrastiveTask
from mllm.training.build_engine import start_engine
from mllm.training.settings import EngineSettings, LoopSettings, OptimizerSettings

HEAD_WIDTH = 64
VOCABULARY = 4096
LR, WEIGHT_DECAY, BETAS, EPS = 5e-4, 0.2, (0.9, 0.98), 1e-6
PEER, OURS = "open_clip", "ours"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="pairs a step")
    parser.add_argument("--larger", type=int, default=8, help="the larger batch of the cached contenders, in batches")
    parser.add_argument("--chunk", type=int, default=32, help="pairs that our cached step puts through at once")
    parser.add_argument("--width", type=int, default=256, help="of both encoders")
    parser.add_argument("--layers", type=int, nargs=2, default=(6, 4), metavar=("IMAGE", "TEXT"))
    parser.add_argument("--image", type=int, nargs=2, default=(64, 8), metavar=("SIDE", "PATCH"), help="pixels")
    parser.add_argument("--text", type=int, default=32, help="tokens of a caption")
    parser.add_argument("--dtype", choices=("float32", "autocast"), default="float32")
    parser.add_argument("--steps", type=int, default=2, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--negatives", type=int, metavar="B", help="only time which of B pairs are no negatives, and end"
    )
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.negatives:
        _time_negatives(options.negatives)
        return
    if options.worker:
        batch, chunk = options.worker["batch"], options.worker["chunk"]
        make = _peer_step if options.worker["who"] == PEER else _our_step
        serve(lambda: _rounds(make(options, _pairs(options, batch), chunk), options.steps))
        return
    _report(options, _race(options))


def _time_negatives(batch: int) -> None:
    """CPU seconds of a step's lists, for all pairs and for an eighth of them, of 3 to 15 words by Zipf's law of 50,000."""
    draw = random.Random(0)
    weights = list(accumulate(1 / rank for rank in range(1, 50_001)))
    words = [draw.choices(range(len(weights)), cum_weights=weights, k=draw.randint(3, 15)) for _ in range(batch)]
    captions = [" ".join(f"w{word}" for word in own) for own in words]
    for own in (slice(0, batch // 8), slice(0, batch)):
        taken = []
        for _ in range(5):
            started = time.process_time()
            sets = [words_of(caption) for caption in captions]
            places = torch.cat([same(range(batch), sets, own), describes(sets, own)])
            taken.append(time.process_time() - started)
        print(f"{own.stop} of {batch} pairs: {min(taken):.2f} CPU s, {len(places)} places")
    print(machine())


def _race(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    larger = options.batch * options.larger
    workers = {
        PEER: {"who": PEER, "batch": options.batch, "chunk": options.batch},
        OURS: {"who": OURS, "batch": options.batch, "chunk": options.batch},
        f"{PEER}, {larger} in {options.larger} accumulated": {"who": PEER, "batch": larger, "chunk": options.batch},
        f"{OURS}, {larger} by GradCache": {"who": OURS, "batch": larger, "chunk": options.chunk},
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    with TemporaryDirectory() as folder:
        contenders = {
            name: Contender(__file__, [*sys.argv[1:], "--worker", json.dumps(worker)], Path(folder) / f"{number}.log")
            for number, (name, worker) in enumerate(workers.items())
        }
        for _ in range(options.rounds):
            for name, contender in contenders.items():
                found[name].append(contender.run() | {"batch": workers[name]["batch"]})
                print(f"{name}: {json.dumps(found[name][-1])}", flush=True)
        for contender in contenders.values():
            contender.close()
    return found


def _report(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    side, patch = options.image
    print(
        f"\n{machine()}, {options.dtype}; width {options.width}, {options.layers[0]} image and {options.layers[1]} text"
    )
    print(f"layers, {side} px in patches of {patch}, captions of up to {options.text} tokens\n")
    seconds = {name: [second for r in rounds for second in r["seconds"]] for name, rounds in found.items()}
    rate = {name: rounds[0]["batch"] / median(seconds[name]) for name, rounds in found.items()}
    peak = {name: rounds[-1]["peak_bytes"] for name, rounds in found.items()}
    rows = []
    for name, rounds in found.items():
        against = ["", ""] if name == PEER else [f"{f[name] / f[PEER]:.2f}" for f in (rate, peak)]
        memory = f"{peak[name] / 2**30:.2f}"
        loss = f"{rounds[0]['losses'][0]:.6f}"
        rows.append([name, rounds[0]["batch"], f"{rate[name]:.1f}", against[0], memory, against[1], loss])
    header = ["", "batch", "samples/s", f"/ {PEER}", "peak memory, GiB", f"/ {PEER}", "loss of step 1"]
    print(markdown_table(header, rows))
    print(f"\nspread of the step times: {max(spread(taken) for taken in seconds.values()):.2f}")


def _rounds(step: Callable[[], float], steps: int) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        seconds, losses = [], []
        for _ in range(1 + steps):  # the first of a round isn't counted
            started = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds[1:], "losses": losses}

    return run


def _pairs(options: argparse.Namespace, batch: int) -> PairBatch:
    """Pictures of noise and captions of random ids and lengths; the end token has the highest id, where open_clip looks."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, options.image[0], options.image[0], generator=generator)
    ids = torch.randint(2, VOCABULARY - 1, (batch, options.text), generator=generator)
    lengths = torch.randint(options.text // 4, options.text, (batch, 1), generator=generator)
    lengths[0] = options.text - 1
    places = torch.arange(options.text)[None]
    ids = torch.where(places < lengths, ids, torch.where(places == lengths, VOCABULARY - 1, 0))
    return PairBatch(pixels, ids, (places <= lengths).long(), torch.ones(batch, dtype=torch.bool))


def _model(options: argparse.Namespace) -> CLIPModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": options.width, "intermediate_size": 4 * options.width, "hidden_act": "gelu"}
    sizes |= {"num_attention_heads": options.width // HEAD_WIDTH, "projection_dim": options.width}
    text = {"num_hidden_layers": options.layers[1], "vocab_size": VOCABULARY, "max_position_embeddings": options.text}
    text |= {"bos_token_id": 1, "eos_token_id": VOCABULARY - 1, "pad_token_id": 0}
    side, patch = options.image
    vision = {"num_hidden_layers": options.layers[0], "image_size": side, "patch_size": patch}
    config = CLIPConfig(text_config=sizes | text, vision_config=sizes | vision, projection_dim=options.width)
    return CLIPModel(config)


class _Ready:
    """A batcher whose every batch is the one that is there."""

    batches_per_epoch = 1
    decoder = PairDecoder()

    def __init__(self, pairs: PairBatch) -> None:
        self.pairs, self.batch_size = pairs, len(pairs.pixel_values)

    def ids(self, step: int) -> tuple[str, ...]:
        return tuple(map(str, range(self.batch_size)))

    def batch(self, step: int, rank: int, world_size: int) -> PairBatch:
        return self.pairs


def _our_step(options: argparse.Namespace, pairs: PairBatch, chunk: int) -> Callable[[], float]:
    batch = len(pairs.pixel_values)
    optim = OptimizerSettings(lr=LR, weight_decay=WEIGHT_DECAY, betas=BETAS, eps=EPS)
    loop = LoopSettings(global_batch_size=batch, dtype=options.dtype)
    engine = start_engine(EngineSettings(kind="torch"), optim, loop)(_model(options).train())
    task = ContrastiveTask(_Ready(pairs), "infonce", chunk)

    def step() -> float:
        total = 0.0
        chunks = task.window(0, 0, 1).micro_batches
        for number, micro_batch in enumerate(chunks):
            with engine.autocast():
                loss = task.loss(engine.module, micro_batch).loss_sum
            engine.backward(loss, 1 / batch, last=number == len(chunks) - 1)
            total += float(loss.detach())
        engine.step(1.0)
        return total / batch

    return step


def _peer_step(options: argparse.Namespace, pairs: PairBatch, chunk: int) -> Callable[[], float]:
    modules = _open_clip()
    model = modules["model"].CLIP(
        options.width,
        modules["model"].CLIPVisionCfg(
            layers=options.layers[0], width=options.width, patch_size=options.image[1], image_size=options.image[0]
        ),
        modules["model"].CLIPTextCfg(
            context_length=options.text, vocab_size=VOCABULARY, width=options.width,
            heads=options.width // HEAD_WIDTH, layers=options.layers[1],
        ),
        output_dict=True,
    ).train()  # fmt: skip
    model.load_state_dict(to_open_clip(_model(options).state_dict()))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if (p.ndim < 2 or "ln" in n) is plain], "weight_decay": decay}
        for plain, decay in ((True, 0.0), (False, WEIGHT_DECAY))
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    criterion = modules["loss"].ClipLoss()
    images, texts = (t.to(model.logit_scale.device).split(chunk) for t in (pairs.pixel_values, pairs.input_ids))

    def autocast() -> Any:
        return torch.autocast(images[0].device.type, torch.bfloat16, enabled=options.dtype == "autocast")

    def step() -> float:
        optimizer.zero_grad()
        loss = _peer_backward(model, criterion, list(zip(images, texts, strict=True)), autocast)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return loss

    return step


def _peer_backward(model: Any, criterion: Any, chunks: list[Any], autocast: Callable[[], Any]) -> float:
    """The loss, backpropagated. Of several chunks: features first without a graph, then for each chunk the whole loss,
    its own features with a graph (`--accum-freq`)."""
    cached = []
    if len(chunks) > 1:
        for chunk in chunks:
            with torch.no_grad(), autocast():
                cached.append(model(*chunk))
    value = 0.0
    for number, chunk in enumerate(chunks):
        with autocast():
            own = model(*chunk)
            all_parts = [*cached[:number], own, *cached[number + 1 :]]
            features = {name: torch.cat([c[name] for c in all_parts]) for name in ("image_features", "text_features")}
            loss = criterion(**features, logit_scale=own["logit_scale"], output_dict=True)["contrastive_loss"]
        loss.backward()
        value = loss.item()
    return value


def _open_clip() -> dict[str, Any]:
    """Its modules `model` and `loss`, without its package's own imports: its image transforms need torchvision, which
    does not load beside every CPU build of torch and plays no part in a step."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise SystemExit("open_clip is not installed: pip install --no-deps open_clip_torch")
    package = types.ModuleType("open_clip")
    package.__path__ = [str(Path(found.origin).parent)]
    names = ("torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.transforms")
    sys.modules |= {"open_clip": package} | {name: MagicMock() for name in (*names, f"{names[-1]}.functional")}
    return {name: importlib.import_module(f"open_clip.{name}") for name in ("model", "loss")}


if __name__ == "__main__":
    main()
