"""Faults that data sets come with: each is found by `validate` with its line, and training skips and lists the same ones."""

import json

import pytest
import torch

from mllm.data.dataset import Mixture
from mllm.data.example import render_example
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.data.settings import DataSettings
from mllm.data.validate import validate
from mllm.errors import BadSampleError
from mllm.finetune.task import InstructionTask
from mllm.settings import validate_settings
from mllm.training.settings import LoopSettings
from tests.helpers.templates import PICKY, processor
from tests.helpers.tiny import save_image

IMAGE = "a.png"
BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"


def llava(question="<image>\nwhat?", answer="it", **fields):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **fields}


def chat(content="what?", answer="it", turn=None, **fields):
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer, **(turn or {})}]
    return {"messages": messages, **fields}


def boxes(*numbers, kind="box", **fields):
    return [{"type": "boxes", "boxes": [{"label": "it", kind: list(numbers)}], **fields}]


SHOWN = [{"type": "image"}, {"type": "text", "text": "what?"}]
GOOD = {
    "llava": [
        llava(image=IMAGE),
        llava("what?"),
        llava("what?", "an <image> or a <video>", image=None),
        llava(image=IMAGE, tools=[], history=None, weight=1, image_url="https://x.org/a.png", width=3),
        llava("<image>\nwhat?", image=[IMAGE], video=None, frames=[]),
        llava(image=IMAGE, system="Be brief.", system_prompt="Be brief."),
    ],
    "messages": [
        chat(SHOWN, images=[IMAGE]),
        chat("<image> and?", images=[IMAGE]),
        chat("what?", images=[IMAGE]),
        chat("what?", images=None, tools=None),
        chat("what?", turn={"name": None, "tool_calls": None, "weight": 1, "index": 3}),
        chat([{"type": "text", "text": "what does <image> mean?", "image": None}]),
        chat([{"type": "image", "text": None, "index": 0}, {"type": "text", "text": "?"}], images=[IMAGE]),
        chat([{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": "?"}]),
        chat([{"type": "image", "image": IMAGE}, {"type": "text", "text": "?"}]),
        chat(SHOWN, boxes(0.1, 0.2, 0.3, 0.4), images=[IMAGE]),
        chat("where?", boxes(-5, 0, 900, 4, unit="pixels"), images=[IMAGE]),
        chat(SHOWN[:1] + boxes(0, 0, 1, 1) + SHOWN[1:], images=[IMAGE]),
        {"prompt": [{"role": "user", "content": "?"}], "completion": [{"role": "assistant", "content": "it"}]},
    ],
    "sharegpt": [llava(images=[IMAGE], system="Be brief."), llava("what?", image=IMAGE)],
    "cauldron": [{"images": [IMAGE], "texts": [{"user": "what?", "assistant": "it", "source": "s"}] * 2}],
    "captions": [{"image": IMAGE, "caption": "it"}],
}
BAD = {
    "llava": [
        ("image_path", llava(image_path=IMAGE)),
        ("img", llava(img=IMAGE)),
        ("pic", llava("what?", pic="a.PNG")),
        ("frames", llava("what?", frames=[IMAGE])),
        ("2 <image>", llava("<image>\n<image>\nsame?", image=IMAGE)),
        ("0 image(s)", llava("what is in <image>?", image=None)),
        ("video", llava("<video>\nwhat?", video="a.mp4")),
        ("video", llava("what happens?", videos=["a.mp4"], image=None)),
        ("placeholder", llava("<video>\nwhat?")),
        ("data URI", llava(image="data:image/png;base64,iVBORw0KGgo")),
        ("URL", llava(image="https://example.com/a.png")),
        ("file URI", llava(image="file:///data/a.png")),
        ("base64", llava(image=BASE64)),
        ("base64", llava(image="/9j/4AAQSkZJRgABAQAAAQABAAD")),
        ("another system turn", llava(image=IMAGE, system="A", system_prompt="B")),
        ("tools", llava(image=IMAGE, tools=[{"name": "f"}])),
        ("history", llava(image=IMAGE, history=[["a", "b"]])),
        ("rejected", llava(image=IMAGE, rejected="no")),
        ("weight", llava(image=IMAGE, weight=0.5)),
        ("does not exist", llava(image="gone.png")),
        ("System role", llava(image=IMAGE, system="Be brief.")),
        ("refuses", llava("an odd question")),
    ],
    "messages": [
        ("tool_calls", chat(turn={"tool_calls": [{"function": {"name": "f"}}]})),
        ("reasoning", chat(turn={"reasoning_content": "hm"})),
        ("train", chat(turn={"train": False})),
        ("weight", chat(turn={"weight": 0})),
        ("image part(s)", chat(SHOWN, images=[IMAGE, IMAGE])),
        ("1 <image>", chat("<image>\nwhat?", image_path=IMAGE)),
        ("data URI", chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}])),
        ("img", chat("what?", img=IMAGE)),
        ("boxes of image 0, but 0 image(s)", chat("where?", boxes(0, 0, 1, 1))),
        ("boxes of image 1, but 1 image(s)", chat(SHOWN, boxes(0, 0, 1, 1, image=1), images=[IMAGE])),
        ("no number", chat(SHOWN, boxes(0, float("nan"), 1, 1), images=[IMAGE])),
        ("no number", chat("where?", boxes(0, 0, float("inf"), 1), images=[IMAGE])),
        ("the other way round", chat(SHOWN, boxes(0.5, 0, 0.1, 1), images=[IMAGE])),
        ("has no point", chat(SHOWN, boxes(0.5, 0.5, kind="point"), images=[IMAGE])),
        ("expected 'assistant'", "turn_order"),
    ],
    "sharegpt": [("1 <image>", llava()), ("video", llava("what?", video="a.mp4"))],
    "cauldron": [("1 <image>", {"images": [], "texts": [{"user": "<image> what?", "assistant": "it"}]})],
    "captions": [("URL", {"image": "http://x.org/a.jpg", "caption": "it"})],
}
BAD["messages"][-1] = ("'assistant' is expected", {"messages": [chat()["messages"][0]] * 2 + [chat()["messages"][1]]})


def recipe_of(tmp_path, reader, records, **changes):
    save_image(tmp_path / IMAGE)
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"s{n}"} | record) for n, record in enumerate(records)))
    source = SourceSettings(path=str(path), reader=reader, image_root=str(tmp_path), **changes)
    return RecipeSettings(name="r", sources=(source,))


def trained_on(recipe, p, count):
    """(ids that training uses, id → reason of those that it skips)."""
    data = validate_settings(DataSettings, {"recipe": "-", "on_bad_sample": "skip", "workers": 0}, "test")
    loop = validate_settings(LoopSettings, {"global_batch_size": count, "epochs": 1, "micro_batch_size": 1}, "test")
    window = InstructionTask(Mixture(recipe, 0, False), p, data, loop).window(0, 0, 1)
    skipped = {name: reason for name, _, reason in window.skipped}
    assert all(torch.isfinite(m.inputs.tiles).all() for m in window.micro_batches)
    return sorted(set(window.sample_ids) - skipped.keys()), skipped


@pytest.mark.parametrize("changes", [{}, {"stream": True, "shuffle_buffer": 1}], ids=["index", "stream"])
@pytest.mark.parametrize("reader", BAD)
def test_validate_and_training_find_the_same_faults_with_their_lines(tmp_path, reader, changes):
    good, bad = GOOD[reader], BAD[reader]
    if reader == "llava":
        good = good[:-1]  # the template takes no system turn
    records = [*good, *(record for _, record in bad)]
    if reader == "sharegpt":
        records[0] = {name: value for name, value in records[0].items() if name != "system"}
    p = processor(PICKY)
    recipe = recipe_of(tmp_path, reader, records, **(changes | {"count": len(records)} if changes else {}))
    problems = validate(recipe, 2, lambda sample: render_example(sample, p, 512)).problems
    found = {problem.id: problem for problem in problems}
    assert [p.place for p in problems] == [f"{tmp_path / 's.jsonl'}:{len(good) + n + 1}" for n in range(len(bad))]
    used, skipped = trained_on(recipe, p, len(records))
    assert used == sorted(f"s{n}" for n in range(len(good))) and skipped.keys() == found.keys()
    for name, (words, _) in zip((f"s{n + len(good)}" for n in range(len(bad))), bad, strict=True):
        assert words in found[name].reason and words in skipped[name], (name, found[name].reason)
        assert "\n" not in skipped[name] and skipped[name].startswith(f"{found[name].place}: ")


@pytest.mark.parametrize("reader", GOOD)
def test_what_is_neutral_is_read(tmp_path, reader):
    assert validate(recipe_of(tmp_path, reader, GOOD[reader]), 1).problems == []


def test_without_skip_the_first_fault_ends_the_run_and_is_named(tmp_path):
    mixture = Mixture(recipe_of(tmp_path, "llava", [llava(image=IMAGE), llava(img=IMAGE)]), 0, False)
    with pytest.raises(
        BadSampleError, match=r"sample 's1': .*s\.jsonl:2: has 1 <image> .* \(keys: id, conversations, img\)"
    ):
        for sample in mixture.samples:
            render_example(sample, processor(PICKY), 512)


def test_a_linked_image_folder_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "far").mkdir()
    save_image(tmp_path / "far" / IMAGE)
    recipe = recipe_of(tmp_path / "far", "llava", [llava(image=f"coco/{IMAGE}")])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "coco").symlink_to(tmp_path / "far")
    source = recipe.sources[0].model_copy(update={"image_root": str(tmp_path / "root")})
    (problem,) = validate(recipe.model_copy(update={"sources": (source,)}), 1).problems
    assert "by a link to" in problem.reason and "set image_root" in problem.reason
