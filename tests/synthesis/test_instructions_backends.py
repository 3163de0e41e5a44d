"""Templates and a local model behind the same interface, and the prompts that ship."""

import asyncio
import json
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mllm.cli import _command
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.media.decode import read_image
from mllm.settings import validate_settings
from mllm.synthesis.backends.local import LocalBackend
from mllm.synthesis.backends.template import TemplateBackend, plural, with_article
from mllm.synthesis.context import read_contexts
from mllm.synthesis.filters import Candidate, build_filters
from mllm.synthesis.inputs import Inputs
from mllm.synthesis.prompts import Requests, load_kind, load_objects
from mllm.synthesis.run import write_instructions
from mllm.synthesis.settings import Kind, LocalSettings
from tests.helpers.demo_inputs import picture_bytes, read_lines
from tests.helpers.facts import NO_IMAGES, PROMPTS, fact_records, make_run

TEMPLATE_KINDS = {kind: 1 for kind in get_args(Kind) if kind != "reasoning"}


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
        (row["messages"][n]["content"][-1]["text"], row["messages"][n + 1]["content"][0]["text"])
        for row in read_lines(config.output / "street.jsonl")
        for n in range(0, len(row["messages"]), 2)
    ]
    answers = dict(turns)
    assert answers["Where is the dog?"] == "The dog is at [0.083, 0.333, 0.375, 0.625]."
    assert answers["How many cars can you see?"] == "There is one car."
    assert answers["Is the car to the left or to the right of the dog?"] == "The car is to the right of the dog."


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


@pytest.mark.parametrize("kind", get_args(Kind))
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
