"""Each filter refuses what it is named for, and lets its neighbour pass."""

import json
from pathlib import Path

import pytest

from mllm.errors import UserError
from mllm.settings import validate_settings
from mllm.synthesis.backends.base import Prompt
from mllm.synthesis.context import Box, Context, read_contexts
from mllm.synthesis.filters import Candidate, build_filters
from mllm.synthesis.filters.duplicates import NearDuplicate, Seen
from mllm.synthesis.filters.images import HashSet
from mllm.synthesis.naming import absent_objects, load_objects, present_objects
from mllm.synthesis.parsing import UnparsableError, as_blocks, as_json, parse_turns
from mllm.synthesis.prompts import Request
from mllm.synthesis.run import write_instructions
from mllm.synthesis.settings import FilterSettings, InputSettings
from tests.helpers.demo_inputs import read_lines
from tests.helpers.facts import PROMPTS, fact_records, make_run, openai_backend
from tests.helpers.faulty_server import blocks, serving

FACTS = Context(
    "1", "s", "a.png", "a.png", ("A dog sits on a bench.",), (Box("dog", (10, 20, 30, 40)),), (), "", (100, 100)
)
LONG = (
    "The dog sits calmly on the wooden bench and looks at the people who walk by on this sunny afternoon in the park."
)


def candidate(
    *turns: tuple[str, str], kind: str = "conversation", language: str = "en", image: str = "a.png"
) -> Candidate:
    context = Context("1", "s", image, image, FACTS.captions, FACTS.boxes, (), "", FACTS.size_px)
    return Candidate(Request(Prompt("k", kind, (), context, 0), kind, language, 0, None), list(turns))


def refusals(*candidates: Candidate, sees_image: bool = False, **settings: object) -> list[str | None]:
    """The name of the first filter that refuses each candidate."""
    filters = build_filters(validate_settings(FilterSettings, settings, "test"), load_objects(PROMPTS), sees_image)
    return [next((name for name, refuses in filters.items() if refuses(c)), None) for c in candidates]


@pytest.mark.parametrize(
    ("refused", "kind", "bad", "good"),
    [
        ("empty_turn", "conversation", "", "A dog."),
        ("too_short", "detail", "A dog sits.", LONG),
        ("too_long", "short_vqa", "a dog that sits on a bench", "a dog"),
        ("source_leak", "conversation", "The caption says it is a dog.", "It is a dog."),
        ("source_leak", "conversation", "The dog is at [0.100, 0.200, 0.300, 0.400].", "The dog is on the left."),
        ("source_leak", "spatial", "According to the description, there is one.", "There is one dog."),
        ("unknown_object", "conversation", "The dog looks at a zebra.", "There is no zebra next to the dog."),
        (
            "unknown_object",
            "grounding",
            "It is at [0.100, 0.200, 0.300, 0.500].",
            "It is at [0.100,0.200, 0.300, 0.400].",
        ),
        ("unknown_object", "region_text", "At [0.100, 0.200, 0.300, 0.500] is a dog.", "A dog."),
        (
            "unknown_object",
            "grounded_caption",
            "{A zebra}[0.100, 0.200, 0.300, 0.400] sits on a wooden bench here.",
            "{A dog}[0.100, 0.200, 0.300, 0.400] sits on a wooden bench here.",
        ),
        ("unknown_object", "conversation", "There is a “zebra” here.", "There is a “dog” here."),
        ("personal_data", "conversation", "Write to anna.b@example.org about the dog.", "The dog is 5 years old."),
        ("personal_data", "conversation", "Call +49 30 901820 123.", "It was built in 1998 for 1500000 people."),
        ("personal_data", "conversation", "The card is 4111 1111 1111 1111.", "The number is 4111 1111 1111 1112."),
        ("unsafe", "conversation", "You can build a bomb with it.", "You can build a house with it."),
    ],
)
def test_a_filter_refuses_what_it_is_named_for_and_not_its_neighbour(
    refused: str, kind: str, bad: str, good: str
) -> None:
    assert refusals(candidate(("What is it?", bad), kind=kind)) == [refused]
    assert refusals(candidate(("What is it?", good), kind=kind)) == [None]
    assert refused not in refusals(candidate(("What is it?", bad), kind=kind), skip=[refused])


def test_a_model_that_saw_the_image_may_name_what_the_facts_do_not() -> None:
    assert refusals(candidate(("What is it?", "A zebra.")), sees_image=True) == [None]


@pytest.mark.parametrize(
    ("language", "text", "fits"),
    [
        ("de", "Der Hund sitzt ruhig auf der Bank und schaut den Leuten im Park zu.", True),
        ("de", "The dog sits calmly on the bench and looks at the people in the park.", False),
        ("ja", "犬がベンチに座っています。", True),
        ("ja", "The dog sits on the bench.", False),
        ("ru", "Собака сидит на скамейке.", True),
        ("fr", "Собака сидит на скамейке.", False),
        ("en", "Two dogs.", True),
    ],
)
def test_the_language_is_told_by_script_and_by_words(language: str, text: str, fits: bool) -> None:
    found = refusals(candidate((text, text), language=language), skip=["duplicate", "near_duplicate"])
    assert found == [None if fits else "wrong_language"]


def test_a_question_is_asked_once_of_an_image_and_again_of_another() -> None:
    asked = [candidate((question, "A dog.")) for question in ("What is it?", "what is it", "What else is it?")]
    other = candidate(("What is it?", "A dog."), image="b.png")
    assert refusals(*asked, other) == [None, "duplicate", None, None]
    assert refusals(candidate(("What is it?", "A dog."), ("What is it", "A bench."))) == ["duplicate"]


def test_long_texts_that_are_nearly_the_same_are_found_and_short_ones_may_recur() -> None:
    nearly = LONG.replace("sunny", "warm")
    texts = [LONG, nearly, LONG[::-1], "A dog.", "A dog."]
    images = [candidate((f"Look {n}, what?", text), image=f"{n}.png") for n, text in enumerate(texts)]
    assert refusals(*images, near_duplicate_similarity=0.6, skip=["wrong_language"])[:2] == [None, "near_duplicate"]
    assert refusals(*images, near_duplicate_similarity=0.6, skip=["wrong_language"])[3:] == [None, None]
    assert refusals(*images, near_duplicate_similarity=0.99, skip=["wrong_language"])[1] is None


def test_bands_find_pairs_at_the_threshold() -> None:
    for similarity in (0.5, 0.8, 0.95):
        rows = NearDuplicate(Seen(), similarity)._rows
        assert 1 - (1 - similarity**rows) ** (128 // rows) >= 0.95


def test_blocks_and_json_are_read_alike_and_anything_else_is_refused() -> None:
    turns = [("What?\nReally?", "A “dog” === here"), ("Und?", "")]
    assert parse_turns(as_blocks(turns)) == turns == parse_turns(as_json(turns))
    assert parse_turns("```json\n" + as_json(turns) + "\n```") == turns
    for text in ("", "A dog.", "Question: a", "Answer: a\n===\nQuestion: b", '{"turns": []}', '{"turns": [{"question": 1}]}',
                 '{"turns": [["a", "b"]]}', as_json(turns)[:-4], "[" * 100000, "{" + '"a":{' * 100000):  # fmt: skip
        with pytest.raises(UnparsableError):
            parse_turns(text)
    with pytest.raises(UnparsableError, match="surrogate"):
        parse_turns('{"turns": [{"question": "a", "answer": "half \\ud83d"}]}')


def test_images_of_an_evaluation_set_and_repeated_ones_are_never_asked_about(tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    def picture(name: str, seed: int, **save: object) -> None:
        image = Image.new("RGB", (96, 96), (255, 255, 255))
        for n in range(6):
            x, y = (seed * 37 + n * 29) % 70, (seed * 53 + n * 17) % 70
            ImageDraw.Draw(image).rectangle((x, y, x + 20, y + 14), fill=(30 * n, 255 - 30 * n, 90))
        image.save(tmp_path / name, **save)

    for n in range(4):
        picture(f"{n}.png", n)
    picture("again.jpg", 1, quality=85)
    picture("test.jpg", 2, quality=85)
    (tmp_path / "bad.png").write_bytes((tmp_path / "3.png").read_bytes()[:50])
    held = {"id": "t", "images": ["test.jpg"], "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many cars can you see?\nShort."}]},
        {"role": "assistant", "content": "1"}]}  # fmt: skip
    (tmp_path / "eval.jsonl").write_text(json.dumps(held) + "\n")
    names = ["0.png", "1.png", "2.png", "3.png", "again.jpg", "bad.png"]
    records = [fact_records(1)[0] | {"id": name, "image": name} for name in names]
    evaluation = [{"path": str(tmp_path / "eval.jsonl"), "image_root": str(tmp_path)}]
    filters = {"evaluation": evaluation, "skip": ["near_duplicate"]}
    config = make_run(tmp_path, records, filters=filters, kinds={"spatial": 1}, limit=len(names))
    report = write_instructions(config)
    refused = {row["place"]: row["filter"] for row in read_lines(config.output / "rejected.jsonl")}
    assert {place: name for place, name in refused.items() if "image" in name} == {
        "street-2.png": "evaluation_image",
        "street-again.jpg": "duplicate_image",
        "street-bad.png": "bad_image",
    }
    assert report.requests == 3 and set(refused.values()) - {"evaluation_question"} <= {
        n for n in refused.values() if "image" in n
    }
    assert report.funnel["evaluation_question"] == sum(v == "evaluation_question" for v in refused.values()) > 0


def test_a_recoloured_image_is_another() -> None:
    from PIL import Image

    hashes = HashSet(4)
    hashes.add(hashes.signature(Image.new("RGB", (40, 40), (200, 0, 0))))
    assert hashes.holds(hashes.signature(Image.new("RGB", (80, 80), (203, 2, 0))))
    assert not hashes.holds(hashes.signature(Image.new("RGB", (40, 40), (0, 0, 200))))


def test_a_judge_keeps_what_it_scores_high_and_gives_its_reason(tmp_path: Path) -> None:
    def answer(request: dict) -> str:
        asked = request["messages"][-1]["content"]
        if asked.startswith("Facts:"):
            number = int(asked.split("number ")[1].split()[0])
            return ["nonsense", '{"reason": "made up", "score": 2}', "Good.\nScore: 4"][number % 3]
        return blocks(("Which number?", asked.split("\n")[0]))

    with serving(answer=answer) as (url, ledger):
        judge = {"backend": openai_backend(url, model="judge"), "min_score": 3}
        config = make_run(tmp_path, fact_records(6), backend=openai_backend(url), judge=judge)
        report = write_instructions(config)
        assert write_instructions(config).data_hash == report.data_hash and len(ledger.requests) == 12
    details = [row["detail"] for row in read_lines(config.output / "rejected.jsonl")]
    assert report.samples == 2 and report.funnel["judge"] == 4
    assert details[0].startswith("no verdict in 'nonsense'") and details[1].startswith("scored 2, made up")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "../a.png"}, "leaves the image root"),
        ({"image": "tar:0:100:/etc/hostname"}, "in another file than its sample"),
        ({"image": "parquet:0:0:other.parquet"}, "in another file than its sample"),
        ({"image": "a\0.png"}, "can't be a path"),
        ({"image": "circle.png"}, "can't be a path"),
        ({"image": ["a.png", "b.png"]}, "expected one image"),
        ({"captions": [1]}, "text or a list of texts"),
        ({"boxes": [{"category": "dog", "box": [5, 5, 1, 9]}]}, r"box: \[x1, y1, x2, y2\]"),
        ({"boxes": {"category": "dog"}}, "expected a list"),
        ({"captions": [], "boxes": [], "ocr": []}, "no facts"),
        ({"boxes": [{"category": "dog", "box": [0, 0, float("inf"), 9]}]}, r"box: \[x1, y1, x2, y2\]"),
    ],
)
def test_a_record_that_is_none_is_passed_over_with_a_reason(tmp_path: Path, change: dict, reason: str) -> None:
    (tmp_path / "circle.png").symlink_to("circle.png")
    make_run(tmp_path, fact_records(2))
    records = [fact_records(1)[0] | change, *fact_records(2)]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    bad: list[UserError] = []
    source = InputSettings(name="s", path=str(tmp_path / "facts.jsonl"), image_root=str(tmp_path))
    assert len(list(read_contexts(source, bad.append))) == 2
    with pytest.raises(UserError, match=reason):
        raise bad[0]


def test_what_a_fact_names_by_another_word_is_not_asked_for_as_absent() -> None:
    objects = load_objects(PROMPTS)
    context = Context("1", "s", "a.png", "a.png", ("A kitten on a sofa beside “books” and knives.",))
    absent = absent_objects(context, objects)
    assert "couch" in objects and not {"couch", "cat", "book", "knife"} & set(absent) and "zebra" in absent
    assert present_objects(context, objects) == ["book"]


def test_places_stay_inside_the_image() -> None:
    assert Box("dog", (-3, 20, 104.0, 40)).place((80, 100)) == "[0.000, 0.250, 1.000, 0.500]"
