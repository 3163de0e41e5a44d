"""Templates and a local model behind the same interface, and the prompts that ship."""

import asyncio
import json
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mllm.cli import _command
from mllm.conversation.schema import TextPart, boxes_of
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.media.decode import read_image
from mllm.settings import validate_settings
from mllm.synthesis.backends.local import LocalBackend
from mllm.synthesis.backends.template import TemplateBackend
from mllm.synthesis.context import Box, Context, read_contexts
from mllm.synthesis.filters import Candidate, build_filters
from mllm.synthesis.grounding import parts_of
from mllm.synthesis.inputs import Inputs
from mllm.synthesis.naming import load_objects
from mllm.synthesis.prompts import Requests, load_kind
from mllm.synthesis.run import write_instructions
from mllm.synthesis.settings import Kind, LocalSettings
from mllm.synthesis.statements import plural, with_article
from tests.helpers.demo_inputs import picture_bytes, read_lines
from tests.helpers.facts import NO_IMAGES, PROMPTS, fact_records, make_run

TEMPLATE_KINDS = {kind: 1 for kind in get_args(Kind) if kind not in ("reasoning", "preference")}


def test_templates_write_every_kind_but_reasoning_and_every_sample_passes_the_filters(tmp_path: Path) -> None:
    config = make_run(tmp_path, fact_records(40), kinds=TEMPLATE_KINDS, requests_per_image=2)
    report = write_instructions(config)
    refused = {name for name, count in report.funnel.items() if count}
    assert refused <= {"duplicate", "near_duplicate"}
    assert {name.split("/")[0] for name in report.written} == set(TEMPLATE_KINDS)
    assert report.yes_no["yes"] == report.yes_no["no"] > 0
    assert report.samples + sum(report.funnel.values()) == report.requests == 80
    assert write_instructions(make_run(tmp_path, fact_records(40), "again", kinds=TEMPLATE_KINDS,
                                       requests_per_image=2)).data_hash == report.data_hash  # fmt: skip


def test_what_templates_say_of_boxes_follows_from_them(tmp_path: Path) -> None:
    config = make_run(tmp_path, fact_records(10), kinds={"spatial": 1, "grounding": 1})
    write_instructions(config)
    turns = [
        (row["messages"][n]["content"][-1]["text"], row["messages"][n + 1]["content"])
        for row in read_lines(config.output / "street.jsonl")
        for n in range(0, len(row["messages"]), 2)
    ]
    answers = dict(turns)
    before, place, after = answers["Where is the dog?"]
    assert (before["text"], after["text"]) == ("The dog is at ", ".")
    # Pixels of an image of 24 × 24, to the last digit.
    assert place["boxes"] == [{"label": "", "box": [2 / 24, 8 / 24, 9 / 24, 15 / 24]}] and place["unit"] == "image"
    assert answers["How many cars can you see?"] == [{"type": "text", "text": "There is one car."}]
    (compared,) = answers["Is the car to the left or to the right of the dog?"]
    assert compared["text"] == "The car is to the right of the dog."


def test_grounded_captions_and_regions_are_boxes_that_any_format_comes_of(tmp_path: Path) -> None:
    kinds = {"grounded_caption": 1, "region_text": 1}
    config = make_run(tmp_path, fact_records(12), kinds=kinds)
    write_instructions(config)
    samples = Mixture(load_recipe(str(config.output / "recipe.yaml")), 0, False).samples
    assert {sample.kind for sample in samples} == set(kinds)
    dog, car = ([n / 24 for n in box] for box in ((2, 8, 9, 15), (12, 8, 21, 15)))
    for sample in samples:
        sample.check()
        found = {tuple(r.box): r.label for part in boxes_of(sample.messages) for r in part.boxes}
        assert found.keys() <= {tuple(dog), tuple(car)} and found
        if sample.kind == "grounded_caption":
            assert found == {tuple(dog): "dog", tuple(car): "car"}
            words = "".join(p.text for p in sample.messages[1].content if isinstance(p, TextPart))
            assert words.startswith("A  number ") and words.endswith(" sits beside a .")
        else:
            assert set(found.values()) == {""} and sample.messages[1].text in ("A dog.", "A car.")


def test_places_of_a_model_that_writes_them_are_those_of_the_facts() -> None:
    context = Context(
        "1", "s", "a.png", "a.png", (), (Box("dog", (1, 2, 3, 4)), Box("cat", (-3, 0, 9, 9))), (), "", (7, 7)
    )
    text = (
        "{A dog}[0.143,0.286, 0.429,0.571] is by {a cat} [0.000, 0.000, 1.000, 1.000], in 2024 [1, 2], at "
        "[0.5, 0.5, 0.6, 0.7]."
    )
    parts = parts_of(text, context)
    assert [part.type for part in parts] == ["boxes", "text", "boxes", "text", "boxes", "text"]
    boxes = [part.boxes[0] for part in parts if part.type == "boxes"]
    assert [(box.label, box.box) for box in boxes] == [
        ("A dog", (1 / 7, 2 / 7, 3 / 7, 4 / 7)),
        ("a cat", (0.0, 0.0, 1.0, 1.0)),
        ("", (0.5, 0.5, 0.6, 0.7)),
    ]
    assert [part.text for part in parts if part.type == "text"] == [" is by ", ", in 2024 [1, 2], at ", "."]
    assert parts_of("no place", context) == (TextPart(text="no place"),) and parts_of("", context) == (
        TextPart(text=""),
    )


def test_the_recipe_that_is_written_can_be_trained_on_and_paths_stay(tmp_path: Path, capsys) -> None:
    config = make_run(tmp_path, fact_records(3), kinds={"short_vqa": 1})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    _command(["synth", str(tmp_path / "config.json"), "--set", "limit=2"])
    assert "2 samples of 2 requests" in capsys.readouterr().out
    mixture = Mixture(load_recipe(str(config.output / "recipe.yaml")), 0, False)
    sample = mixture.samples[0]
    assert sample.messages[0].text.endswith("\nAnswer the question using a single word or phrase.")
    assert sample.images == (str(tmp_path / "0.png"),) and len(mixture.samples) == 2


def test_what_an_earlier_run_wrote_does_not_stay_beside_a_run_that_refuses_all(tmp_path: Path) -> None:
    config = make_run(tmp_path, fact_records(3))
    write_instructions(config)
    assert (config.output / "street.jsonl").exists() and (config.output / "recipe.yaml").exists()
    none = {"skip": list(NO_IMAGES), "words": {"conversation": (150, 200)}}
    assert write_instructions(make_run(tmp_path, fact_records(3), filters=none)).samples == 0
    assert not (config.output / "street.jsonl").exists() and not (config.output / "recipe.yaml").exists()


def test_an_input_is_not_written_over(tmp_path: Path) -> None:
    config = make_run(tmp_path, fact_records(2), output=".")
    before = (tmp_path / "facts.jsonl").read_text()
    source = config.inputs[0].model_copy(update={"name": "facts"})
    with pytest.raises(UserError, match=r"would replace the input .*facts\.jsonl"):
        write_instructions(config.model_copy(update={"inputs": (source,)}))
    assert (tmp_path / "facts.jsonl").read_text() == before
    assert write_instructions(config).samples == 2


def test_images_inside_parquet_stay_inside(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": picture_bytes(n, "PNG"), "path": None}, "caption": f"a dog {n}", "id": n} for n in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "facts.parquet")
    inputs = [{"name": "held", "path": str(tmp_path / "facts.parquet")}]
    config = make_run(tmp_path, [], inputs=inputs)
    assert write_instructions(config).samples == 3
    sample = Mixture(load_recipe(str(config.output / "recipe.yaml")), 0, False).samples[1]
    assert read_image(sample.images[0]).size == (24, 24)


def test_a_local_model_answers_a_batch_and_the_run_goes_on_from_the_journal(tmp_path: Path, tiny_parts: Path) -> None:
    backend = {"kind": "local", "model": str(tiny_parts / "lm"), "batch_size": 2, "max_tokens": 4, "device": "cpu"}
    filters = {"skip": list(NO_IMAGES)}
    config = make_run(tmp_path, fact_records(3), backend=backend, filters=filters, kinds={"absent": 1})
    first, again = write_instructions(config), write_instructions(config)
    # A model of random weights writes nothing that can be read, and that is what the report says.
    assert (first.samples, first.answered, first.funnel["unparsable"]) == (0, 3, 3)
    assert again.answered_before == 3 and first.completion_tokens <= 12 and first.prompt_tokens > 300


def test_padding_does_not_change_what_a_local_model_writes(tmp_path: Path, tiny_parts: Path) -> None:
    settings = validate_settings(
        LocalSettings, {"kind": "local", "model": str(tiny_parts / "lm"), "max_tokens": 5, "device": "cpu"}, "test"
    )
    backend = LocalBackend(settings)
    records = fact_records(3)
    records[1]["captions"] = ["A dog."]
    config = make_run(tmp_path, records, kinds={"ocr": 1})
    requests = Requests(config, TemplateBackend())
    prompts = [request.prompt for context in Inputs(config) for request in requests.about(context)]
    together = asyncio.run(backend.complete(prompts))
    alone = [asyncio.run(backend.complete([prompt]))[0] for prompt in prompts]
    assert together == alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": {"reasoning": 1}}, "template can't write reasoning"),
        ({"languages": {"de": 1}}, "template can't write de"),
        ({"languages": {"xx": 1}}, "unknown code 'xx'"),
        ({"filters": {"skip": ["spelling"]}}, "unknown filter 'spelling'"),
        ({"prompts": "nowhere"}, "nowhere/conversation/system.txt does not exist"),
        ({"backend": {"kind": "local", "model": "/nowhere"}}, "/nowhere can't be loaded"),
        ({"kinds": {"grounding": 1}, "inputs_without_boxes": True}, "nothing to ask about .*no_facts 1"),
    ],
)
def test_a_mistake_in_the_settings_is_one_clear_line(tmp_path: Path, changes: dict, message: str) -> None:
    records = fact_records(1)
    if changes.pop("inputs_without_boxes", False):
        records[0]["boxes"] = []
    with pytest.raises(UserError, match=message):
        write_instructions(make_run(tmp_path, records, **changes))


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind != "preference"])
def test_the_examples_that_ship_pass_the_filters_of_their_kind(kind: str, tmp_path: Path) -> None:
    """What is shown to a model as good must be good."""
    prompts = load_kind(PROMPTS, kind)
    assert prompts.examples
    config = make_run(tmp_path, fact_records(1), kinds={kind: 1})
    backend = TemplateBackend()
    backend.kinds = None
    request = next(
        r for context in read_contexts(config.inputs[0], list) for r in Requests(config, backend).about(context)
    )
    filters = build_filters(config.filters, load_objects(PROMPTS), sees_image=True)
    for _, turns in prompts.examples:
        for name, refuses in filters.items():
            assert refuses(Candidate(request, turns)) is None, name


def test_requests_of_an_image_do_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    languages = {"en": 3, "de": 1}
    records = fact_records(20)
    backend = TemplateBackend()
    backend.languages = None

    def keys(chosen: list[dict]) -> dict[str, str]:
        config = make_run(tmp_path, chosen, kinds=TEMPLATE_KINDS, languages=languages)
        requests = Requests(config, backend)
        return {r.id: r.prompt.key for context in Inputs(config) for r in requests.about(context)}

    every, few = keys(records), keys(records[::3])
    assert few.items() <= every.items() and len(set(every.values())) == 20
    assert {name.split("-")[3] for name in every} == {"en", "de"}
    assert json.dumps(sorted(every)) == json.dumps(sorted(set(every)))


def test_plurals_and_articles() -> None:
    assert [plural(name) for name in ("dog", "bus", "person", "traffic light")] == [
        "dogs",
        "buses",
        "people",
        "traffic lights",
    ]
    assert [with_article(name) for name in ("dog", "umbrella", "scissors")] == ["a dog", "an umbrella", "scissors"]
