"""A step laid out from counts is the step laid out from rendered samples, and counting survives what befalls it."""

import contextlib
import dataclasses
import json
import random
import signal
import subprocess

import pytest
import torch

from mllm.checkpoint.start import load_processor
from mllm.data import counting
from mllm.data.counts import TokenCounts, rendering_key
from mllm.data.dataset import Mixture
from mllm.data.example import render_whole
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.data.settings import DataSettings
from mllm.errors import BadSampleError, UserError
from mllm.finetune.task import InstructionTask
from mllm.media.visual import ImageGeometry
from mllm.processor import Processor
from mllm.training.settings import LoopSettings
from tests.helpers.tiny import TOKENIZERS, save_image, tiny_settings

RANKS = 3
IMAGES = ((), ("a.png",), ("b.png",), ("a.png",), ("a.png", "sub/b.png"), ("gone.png",), ("torn.png",), ("link.png",))


def record(rng, number):
    """A conversation of one to three turns, its images spread over them; one in ten can't be trained on."""
    images = rng.choice(IMAGES)
    turns, left = [], list(images)
    for turn in range(rng.randint(1, 3)):
        shown, left = (left, []) if turn or rng.random() < 0.7 else (left[:1], left[1:])
        words = (
            "what colour is this " * rng.randint(1, 6) if turn else rng.choice(["what is it", "what is this", "hi "])
        )
        content = [{"type": "image"} for _ in shown] + [{"type": "text", "text": words}]
        turns += [{"role": "user", "content": content}, {"role": "assistant", "content": "yes " * rng.randint(1, 9)}]
    if left:
        turns[0]["content"] += [{"type": "image"} for _ in left]
    fault = rng.random()
    if fault < 0.05:
        turns = turns[:1]
    elif fault < 0.1:
        turns.insert(1, turns[0])
    return {"id": f"s{number}", "messages": turns, "images": images, "kind": f"k{number % 3}"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two files of samples, whole, torn and missing images, and one behind a link that leaves the root."""
    root, rng = tmp_path_factory.mktemp("counts"), random.Random(0)
    (root / "data" / "sub").mkdir(parents=True)
    for name in ("outside.png", "data/a.png", "data/b.png", "data/sub/b.png"):
        save_image(root / name)
    (root / "data" / "torn.png").write_bytes((root / "outside.png").read_bytes()[:60])
    (root / "data" / "link.png").symlink_to(root / "outside.png")
    for name, numbers in (("one", range(70)), ("two", range(70, 130))):
        lines = [json.dumps(record(rng, number)) + "\n" for number in numbers]
        (root / f"{name}.jsonl").write_text("".join(lines))
    return root


def mixture(root, **changes):
    one = {"path": str(root / "*.jsonl"), "image_root": str(root / "data"), "weight": 1.5} | changes
    two = {"path": str(root / "two.jsonl"), "image_root": str(root / "data"), "kinds": ("k1",)}
    return Mixture(RecipeSettings(name="test", sources=(SourceSettings(**one), SourceSettings(**two))), 0, False)


def rendered_samples(mix, processor):
    for index in range(len(mix.samples)):
        with contextlib.suppress(BadSampleError):
            yield render_whole(mix.unchecked(index)[0], processor).input_ids


def plain(value):
    """A batch, or a part of one, as plain values."""
    if dataclasses.is_dataclass(value):
        return {name: plain(field) for name, field in vars(value).items()}
    if isinstance(value, dict):
        return {name: plain(tensor) for name, tensor in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


def batches(window):
    return [plain(micro_batch.inputs) for micro_batch in window.micro_batches]


@pytest.mark.parametrize("prompt_format", ["chatml", "vicuna_v1", "plain", "native"])
@pytest.mark.parametrize("packing", ["none", "samples", "shared_prefix"])
def test_a_step_laid_out_from_counts_is_the_one_laid_out_from_rendered_samples(
    root, tiny_parts, monkeypatch, packing, prompt_format
):
    processor = load_processor(tiny_settings(tiny_parts, prompt_format=prompt_format))
    loop = LoopSettings(global_batch_size=23, micro_batch_size=2)
    seen: set[str] = set()
    branches = 0
    lengths = sorted(len(tokens) for tokens in rendered_samples(mixture(root), processor))
    limits = [lengths[int(share * len(lengths))] for share in (0.6, 0.4)] + [lengths[-1]]
    for policy, limit in zip(("drop", "truncate_text", "drop"), limits, strict=True):
        data = DataSettings(
            recipe="-", max_length_tokens=limit, packing=packing, on_bad_sample="skip", on_too_long=policy, workers=0
        )
        counted, rendered = (InstructionTask(mixture(root), processor, data, loop) for _ in range(2))
        counted.prepare(2)
        with monkeypatch.context() as patch:
            patch.setattr("mllm.finetune.task.can_be_counted", lambda *_: False)
            for step, ranks in ((0, 2), (9, 3)):
                for rank in range(ranks):
                    ours, theirs = (task.window(step, rank, ranks) for task in (counted, rendered))
                    assert ours.sample_ids == theirs.sample_ids and ours.skipped == theirs.skipped
                    assert batches(ours) == batches(theirs)
                    seen |= {kind for _, kind, _ in ours.skipped}
                    branches += sum(int((m.inputs.parent_segment >= 0).sum()) for m in ours.micro_batches)
    # What stands before an answer without words in front of it is an image, of which no part is shared.
    assert (branches > 0) == (packing == "shared_prefix" and prompt_format != "plain")
    assert {"image", "turn_order", "too_long", "truncated"} <= seen


def test_a_change_of_what_decides_about_tokens_is_another_key(tiny_parts):
    def key(tokenizer="byte_level", prompt_format="chatml", preparer=None, template=None, **geometry):
        geometry = {"image_size_px": 16, "patch_size_px": 4} | geometry
        built = TOKENIZERS[tokenizer]()
        built.chat_template = template or built.chat_template
        return rendering_key(Processor(built, prompt_format, ImageGeometry(**geometry), preparer))

    base = load_processor(tiny_settings(tiny_parts))
    other = base.tokenizer.chat_template.replace("Be kind.", "Be brief.")
    changed = [
        key("sentencepiece"),
        key(prompt_format="vicuna_v1"),
        key(prompt_format="native"),
        key(prompt_format="native", template=other),
        key(shuffle=2),
        key(image_size_px=32),
        key(keep_class_token=True),
    ]
    assert key() == key(preparer=base.preparer) and len({key(), *changed}) == 1 + len(changed)


def many(tmp_path, count=100):
    lines = [json.dumps(record(random.Random(n), n)) + "\n" for n in range(count)]
    (tmp_path / "many.jsonl").write_text("".join(lines))
    source = SourceSettings(path=str(tmp_path / "many.jsonl"), image_root=str(tmp_path))
    return Mixture(RecipeSettings(name="many", sources=(source,)), 0, False)


def outlines(counts, count=100):
    found = []
    for index in range(count):
        try:
            one = counts.outline(index, 4096, "error")
            found.append((one.length, one.first_supervised, one.image_spans, one.images, one.opening.tolist()))
        except BadSampleError as error:
            found.append(str(error))
    return found


@pytest.mark.slow
def test_processes_count_as_one_does_and_go_on_where_a_dead_one_stopped(tiny_parts, tmp_path, monkeypatch, index_cache):
    processor = load_processor(tiny_settings(tiny_parts))
    mix = many(tmp_path)
    alone = outlines(TokenCounts(mix, processor))
    monkeypatch.setattr(counting, "PARTS_PER_PROCESS", 1)
    monkeypatch.setattr(counting, "usable_cores", lambda: 2)
    monkeypatch.setattr("mllm.data.counts.rendering_key", lambda _: "again")
    started = []
    real = subprocess.Popen

    def dying(*arguments, **options):
        started.append(real(*arguments, **options))
        if len(started) == 2:
            started[1].send_signal(signal.SIGKILL)
        return started[-1]

    monkeypatch.setattr(counting, "ROWS_PER_PART", 25)
    monkeypatch.setattr(subprocess, "Popen", dying)
    with pytest.raises(UserError, match=r"a process that counts tokens was killed by signal 9; .* start the same"):
        TokenCounts(mix, processor)
    assert all(process.poll() is not None for process in started) and not list(index_cache.glob("*again.counts"))
    monkeypatch.setattr(subprocess, "Popen", real)
    assert outlines(TokenCounts(mix, processor)) == alone
    assert not list(index_cache.glob("*again.parts"))
