"""Pairs that are synthesized: true and false answers by the facts, from templates and from models."""

import asyncio
import io
import json
import random
import tarfile
from collections import Counter
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from PIL import Image

from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.data.writers import record_of
from mllm.errors import UserError
from mllm.media.decode import read_image
from mllm.synthesis.backends.template import TemplateBackend
from mllm.synthesis.context import read_contexts
from mllm.synthesis.damage import cropped
from mllm.synthesis.filters import Candidate, build_filters
from mllm.synthesis.naming import load_objects
from mllm.synthesis.output import sample_of
from mllm.synthesis.parsing import parse_turns
from mllm.synthesis.preferences import paired
from mllm.synthesis.prompts import Requests, load_kind
from mllm.synthesis.run import write_instructions
from tests.helpers.demo_inputs import picture_bytes, read_lines
from tests.helpers.facts import PROMPTS, fact_records, make_run, openai_backend
from tests.helpers.faulty_server import blocks, serving
from tests.helpers.pair_checker import fault_of

SORTS = {"object", "attribute", "count", "relation", "text", "box"}
THINGS = ("dog", "cat", "car", "bench", "kite", "traffic light", "person", "bus", "knife", "umbrella", "sheep", "box")
COLOURS = ("red", "blue", "green", "black", "orange", "black and white", "small", "old")
PREFERENCE = {"kinds": {"preference": 1}}


def random_facts(count):
    """Records about scenes drawn at random, with captions that name some of what the boxes hold, and more."""
    rng = random.Random(5)
    records = []
    for number in range(count):
        boxes = []
        for _ in range(rng.randrange(6)):
            x, y, w, h = rng.randrange(80), rng.randrange(60), rng.randint(4, 40), rng.randint(4, 30)
            boxes.append({"category": rng.choice(THINGS), "box": [x, y, min(100, x + w), min(80, y + h)]})
        captions = []
        for _ in range(rng.randrange(1, 3)):
            one, other = rng.sample([*THINGS, "man", "teddy bear"], 2)
            form = rng.choice(("A {c} {a} beside a {b}", "two {a}s and an old {b} on the street.", "The {a} is {c}"))
            captions.append(form.format(a=one, b=other, c=rng.choice(COLOURS)))
        ocr = rng.sample(["EXIT 4", "Bäckerei", "No. 17", "STOP"], rng.randrange(3))
        size = {"height": 80, "width": 100}
        records.append({"id": number, "image": "0.png", "captions": captions, "boxes": boxes, "ocr": ocr} | size)
    return records


def from_template(config):
    """(candidate, pair as it is written) of every request, by templates."""
    about = Requests(config, TemplateBackend()).about
    requests = [request for context in read_contexts(config.inputs[0], list) for request in about(context)]
    prompts = [request.prompt for request in requests]
    objects = load_objects(PROMPTS)
    for request, answer in zip(requests, asyncio.run(TemplateBackend().complete(prompts)), strict=True):
        turns = parse_turns(answer.text)
        pair = paired(turns, request.prompt.sort, request.prompt.context, objects, by_template=True)
        candidate = Candidate(request, pair.turns, pair)
        yield candidate, record_of(sample_of(candidate))


def test_of_ten_thousand_pairs_the_facts_support_each_chosen_and_contradict_each_rejected_answer(tmp_path):
    records = random_facts(2510)
    pairs = list(from_template(make_run(tmp_path, records, **PREFERENCE, requests_per_image=4)))
    facts, synonyms = {str(record["id"]): record for record in records}, load_objects(PROMPTS)
    faults = [
        (fault, pair)
        for candidate, pair in pairs
        if (fault := fault_of(pair, facts[candidate.request.prompt.context.id], synonyms))
    ]
    assert not faults, (len(faults), faults[0])
    sorts = Counter(pair["kind"] for _, pair in pairs)
    assert len(pairs) >= 10_000 and sorts.keys() == SORTS and min(sorts.values()) > 500
    ratios = [len(c.answers[0].split()) / len(c.answers[1].split()) for c, _ in pairs]
    assert 0.9 <= median(ratios) <= 1.1
    firsts = Counter(candidate.answers[0].split()[0] for candidate, _ in pairs)
    assert 0.8 < firsts["Yes,"] / firsts["No,"] < 1.25
    assert all(p["scores"]["chosen"]["facts"] == 1 > p["scores"]["rejected"]["facts"] >= 0 for _, p in pairs)


def test_the_checker_finds_answers_that_are_the_wrong_way_round(tmp_path):
    """What finds no fault above must be able to."""
    records = random_facts(60)
    facts, synonyms = {str(record["id"]): record for record in records}, load_objects(PROMPTS)
    for candidate, pair in from_template(make_run(tmp_path, records, **PREFERENCE)):
        turned = pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]}
        assert fault_of(turned, facts[candidate.request.prompt.context.id], synonyms), turned


def test_pairs_are_written_as_such_and_the_same_seed_gives_the_same_bytes(tmp_path):
    records = fact_records(30)
    report = write_instructions(make_run(tmp_path, records, **PREFERENCE, requests_per_image=2))
    again = make_run(tmp_path, records, "again", **PREFERENCE, requests_per_image=2)
    assert write_instructions(again).data_hash == report.data_hash
    written = (tmp_path / "out/street.jsonl").read_bytes()
    assert written == (tmp_path / "again/street.jsonl").read_bytes()
    other = make_run(tmp_path, records, "other", **PREFERENCE, requests_per_image=2, seed=1)
    assert write_instructions(other).data_hash != report.data_hash
    refused = {name for name, count in report.funnel.items() if count}
    assert refused <= {"duplicate"} and report.samples > 50
    mixture = Mixture(load_recipe(str(tmp_path / "out/recipe.yaml")), 0, False)
    assert mixture.epoch_length == report.samples
    for pair in mixture.samples[: report.samples]:
        pair.check()
    assert {name.split("/")[0] for name in report.written} <= SORTS


RIGHT, WRONG = "A dog sits beside a car.", "A zebra sits beside a car."
SCORED = ("3. Too little.", "Score: 9, all true", "9: all true too", "3, made up")


def answer_to(request):
    """What a model says: to a critic's question scores, to an answer that is wrong the right one, else a pair."""
    asked = request["messages"][-1]["content"]
    if "Answer 1:" in asked:
        return blocks(*((f"Answer {n}", score) for n, score in enumerate(SCORED, 1)))
    if "Answer to correct:" in asked:
        return blocks(("What is there?", RIGHT))
    return blocks(("What is there?", RIGHT), ("What is there?", WRONG))


def answered(records):
    """The records with what a model said of each: nothing, one answer, several, and one that is right."""
    said = ([], [WRONG], ["A dog.", RIGHT, f"{RIGHT} It is a sunny day with nobody around at all.", WRONG], [RIGHT])
    return [
        record | ({"question": "What is there?", "answers": said[n % 4]} if said[n % 4] else {})
        for n, record in enumerate(records)
    ]


def test_a_model_is_asked_for_mistakes_for_repairs_and_for_scores(tmp_path):
    with serving(answer=answer_to) as (url, ledger):
        config = make_run(tmp_path, answered(fact_records(8)), **PREFERENCE, backend=openai_backend(url))
        report = write_instructions(config)
    lines = {line["id"].split("-")[1]: line for line in read_lines(tmp_path / "out/street.jsonl")}
    assert lines.keys() == {"r0", "r1", "r2", "r4", "r5", "r6"}
    assert all((line["chosen"], line["rejected"]) == (RIGHT, WRONG) for line in lines.values())
    assert lines["r1"]["kind"] == "repair" and lines["r2"]["kind"] == "critic" and lines["r0"]["kind"] in SORTS
    assert lines["r2"]["margin"] == 6 and lines["r2"]["scores"]["chosen"]["critic"] == 9
    assert lines["r1"]["scores"] == {"chosen": {"objects": 1.0}, "rejected": {"objects": 0.5}}
    assert report.funnel["no_difference"] == 2, "an answer that needed no repair"
    systems = {request["messages"][0]["content"] for request in ledger.requests}
    assert len(systems) == 3


def test_a_run_that_was_stopped_goes_on_and_writes_the_bytes_of_one_that_was_not(tmp_path):
    records = answered(fact_records(12))
    prices = {"price_prompt": 1000.0, "price_completion": 5000.0, "max_tokens": 40, "concurrency": 2}
    with serving(answer=answer_to) as (url, ledger):
        whole = write_instructions(make_run(tmp_path, records, "whole", **PREFERENCE, backend=openai_backend(url)))
        asked = len(ledger.requests)
        with pytest.raises(UserError, match=r"budget of 1\.5 would be exceeded"):
            write_instructions(
                make_run(tmp_path, records, **PREFERENCE, backend=openai_backend(url, **prices, budget=1.5))
            )
        stopped = len(ledger.requests) - asked
        report = write_instructions(make_run(tmp_path, records, **PREFERENCE, backend=openai_backend(url, **prices)))
        assert 0 < stopped < 12 and len(ledger.requests) == asked + 12
    assert report.data_hash == whole.data_hash
    assert (tmp_path / "out/street.jsonl").read_bytes() == (tmp_path / "whole/street.jsonl").read_bytes()


def test_a_share_of_pairs_is_about_images_that_are_damaged(tmp_path):
    config = make_run(tmp_path, fact_records(24), **PREFERENCE, damage={"share": 0.5})
    report = write_instructions(config)
    samples = Mixture(load_recipe(str(config.output / "recipe.yaml")), 0, False).samples[: report.samples]
    damaged = [pair for pair in samples if pair.rejected_images is not None]
    assert {pair.kind for pair in damaged} == {"damaged_crop", "damaged_noise"} and 6 < len(damaged) < 18
    for pair in damaged:
        pair.check()
        (image,), (other,) = pair.images, pair.rejected_images
        assert pair.chosen == pair.rejected and read_image(other).size == read_image(image).size
        assert np.any(np.asarray(read_image(other)) != np.asarray(read_image(image)))
    written = {path.name: path.read_bytes() for path in (tmp_path / "damaged").glob("*.png")}
    assert len(written) == len(damaged)
    again = write_instructions(make_run(tmp_path, fact_records(24), "again", **PREFERENCE, damage={"share": 0.5}))
    assert again.data_hash == report.data_hash
    assert {path.name: path.read_bytes() for path in (tmp_path / "damaged").glob("*.png")} == written


@pytest.mark.parametrize("seed", range(20))
def test_a_crop_shows_at_most_a_fifth_of_the_image(seed):
    """Each pixel of the image has a colour of its own, so the window is read off the corners."""
    ys, xs = np.mgrid[0:50, 0:100].astype(np.uint8)
    image = Image.fromarray(np.stack([ys, xs, ys], axis=-1))
    shown = np.asarray(cropped(image, seed)).astype(int)
    height, width = (np.ptp(shown[..., channel]) + 1 for channel in (0, 1))
    assert height * width <= 0.2 * 50 * 100 + height + width and shown.shape == (50, 100, 3)


@pytest.mark.parametrize("folder", ["preference", "preference_repair", "preference_critic"])
def test_the_examples_that_ship_are_pairs(folder, tmp_path):
    prompts = load_kind(PROMPTS, folder)
    sort = folder.removeprefix("preference").strip("_") or "attribute"
    config = make_run(tmp_path, fact_records(1), **PREFERENCE)
    candidate, _ = next(from_template(config))
    filters = build_filters(config.filters, load_objects(PROMPTS), sees_image=True)
    for facts, turns in prompts.examples:
        said = [line.partition(": ")[2] for line in facts.splitlines() if line.startswith("Answer")]
        context = replace(candidate.request.prompt.context, question="What is going on here?", answers=tuple(said))
        pair = paired(turns, sort, context, load_objects(PROMPTS), by_template=False)
        for name, refuses in filters.items():
            assert refuses(Candidate(candidate.request, pair.turns, pair)) is None, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": {"preference": 1, "detail": 1}}, "ask for it alone"),
        ({"kinds": {"detail": 1}, "damage": {"share": 0.5}}, "ask for kind `preference`"),
        ({"damage": {"share": 0.5, "folder": "../x"}}, "folder"),
    ],
)
def test_settings_of_pairs_that_fit_nothing_are_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        make_run(tmp_path, fact_records(1), **{**PREFERENCE, **changes})


def test_images_inside_a_file_have_no_place_for_damaged_ones(tmp_path):
    with tarfile.open(tmp_path / "facts.tar", "w") as tar:
        held = json.dumps({"captions": ["A dog beside a red car."]}).encode()
        for name, content in (("a.png", picture_bytes(0, "PNG")), ("a.json", held)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    inputs = [{"name": "street", "path": str(tmp_path / "facts.tar")}]
    with pytest.raises(UserError, match="lies inside a file"):
        write_instructions(make_run(tmp_path, [], **PREFERENCE, damage={"share": 1}, inputs=inputs))
