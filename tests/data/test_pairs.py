"""Preference pairs: what is one, its two sides, and the way of one from a file to a run."""

import json

import pytest

from mllm.conversation.pair import PreferencePair
from mllm.data.changed_words import changed_weights
from mllm.data.convert import convert
from mllm.data.dataset import Mixture
from mllm.data.example import render_example
from mllm.data.readers import READERS
from mllm.data.recipe import RecipeSettings, SourceSettings, load_recipe
from mllm.data.report.page import write_page
from mllm.data.report.survey import survey_recipe
from mllm.data.show import coloured_tokens
from mllm.data.validate import validate
from mllm.errors import BadSampleError, UserError
from mllm.media.prepare import ImagePreparer
from mllm.media.visual import ImageGeometry
from mllm.processor import Processor
from tests.helpers.tiny import TOKENIZERS, save_image

QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
FORMATS = ["plain", "vicuna_v1", "llama_3", "chatml", "native"]


def pair(**changes):
    return {"id": "p", "images": ["a.png"], "messages": QUESTION, "chosen": "a cat", "rejected": "a dog"} | changes


def processor(format_name, tokenizer="byte_level"):
    return Processor(
        TOKENIZERS[tokenizer](), format_name, ImageGeometry(16, 4), ImagePreparer(16, (0.5,) * 3, (0.5,) * 3)
    )


def words(example, p):
    """(the text of the supervised tokens, that of each weight)."""
    tokens = example.tokens
    weights = tokens.weights or (1.0,) * example.length
    learned = [(i, w) for i, s, w in zip(tokens.input_ids, tokens.supervised, weights, strict=True) if s]
    by_weight = {w: p.tokenizer.decode([i for i, own in learned if own == w]) for _, w in learned}
    return p.tokenizer.decode([i for i, _ in learned]), by_weight


def recipe(tmp_path, records, **changes):
    for name in ("a.png", "b.png"):
        save_image(tmp_path / name)
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = SourceSettings(path=str(path), reader="pairs", image_root=str(tmp_path), **changes)
    return RecipeSettings(name="r", sources=(source,))


BAD = {
    "pair": [pair(chosen=""), pair(rejected=" "), pair(chosen=None)],
    "no_difference": [pair(rejected=" a  cat "), pair(rejected="a cat", rejected_images=["a.png"])],
    "no_image": [pair(images=[], messages=[{"role": "user", "content": "what?"}])],
    "image_count": [pair(images=["a.png"] * 2), pair(rejected_images=["a.png", "b.png"])],
    "turn_order": [pair(messages=[*QUESTION, {"role": "assistant", "content": "a cat"}])],
    "weights": [
        pair(chosen_weights=[[0, 9, 2.0]]),
        pair(chosen_weights=[[2, 2, 2.0]]),
        pair(chosen_weights=[[2, 3, 2.0], [0, 1, 2.0]]),
        pair(rejected_weights=[[0, 2, -1.0]]),
        pair(rejected_weights=[[0, 5, 0.0]]),
        pair(chosen_weights=[[0, 1, 2.0]], chosen=[{"type": "boxes", "boxes": [{"label": "it", "box": [0, 0, 1, 1]}]}]),
    ],
    "boxes": [pair(chosen=[{"type": "boxes", "image": 3, "boxes": [{"label": "it", "box": [0, 0, 1, 1]}]}])],
    "image": [pair(rejected_images=["gone.png"]), pair(rejected_images=["../a.png"])],
    "unread": [pair(tools=[{"name": "f"}])],
    "unreadable": [pair(margin="much"), {"id": "p", "images": ["a.png"], "messages": QUESTION}],
}


@pytest.mark.parametrize("stream", [{}, {"stream": True, "count": 3, "shuffle_buffer": 1}], ids=["index", "stream"])
def test_a_pair_of_a_file_has_all_that_was_written(tmp_path, stream):
    more = {
        "context": "It is ",
        "rejected_images": ["b.png"],
        "chosen_weights": [[0, 1, 2.0]],
        "margin": 0.5,
        "scores": {"chosen": {"chair": 1.0}, "rejected": {"chair": 0.5}},
        "kind": "object",
    }
    boxes = [{"type": "boxes", "boxes": [{"label": "cat", "box": [0, 0, 1, 0.5]}]}]
    records = [pair(), pair(id="q", **more), pair(id="r", chosen=boxes)]
    mixture = Mixture(recipe(tmp_path, records, **stream), 0, False)
    found = {sample.id: sample for sample in mixture.samples[:3]}
    assert list(map(type, found.values())) == [PreferencePair] * 3
    image = str(tmp_path / "a.png")
    for record in records:
        read = found[record["id"]]
        again = PreferencePair.model_validate(record | {"images": [image]})
        shown = None if again.rejected_images is None else (str(tmp_path / "b.png"),)
        assert read == again.model_copy(update={"rejected_images": shown})
    if not stream:
        assert mixture.images() == [image, str(tmp_path / "b.png")]
        assert mixture.unchecked(1) == (found["q"], {})


def test_what_is_no_pair_is_named_in_a_line(tmp_path):
    records = [record | {"id": f"{kind}{n}"} for kind, bad in BAD.items() for n, record in enumerate(bad)]
    problems = validate(recipe(tmp_path, [pair(), *records]), 1).problems
    path = tmp_path / "pairs.jsonl"
    expected = [(kind, f"{path}:{n}") for n, kind in enumerate((k for k, bad in BAD.items() for _ in bad), 2)]
    assert sorted((p.kind, p.place) for p in problems) == sorted(expected)
    assert all("\n" not in p.reason for p in problems)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", FORMATS)
def test_of_a_side_the_answer_alone_is_learned_and_the_opening_is_shared(name, tokenizer):
    p = processor(name, tokenizer)
    earlier = [*QUESTION, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "and?"}]
    made = PreferencePair.model_validate(pair(messages=earlier, context="yes no ", chosen="a cat", rejected="red blue"))
    made.check()
    sides = [render_example(side, p, 512) for side in made.sides]
    for side, example, text in zip(made.sides, sides, ("a cat", "red blue"), strict=True):
        learned, ordinary = words(example, p)[0], render_example(side.model_copy(update={"last_answer": None}), p, 512)
        assert learned.replace(" ", "").startswith(text.replace(" ", "")) and "hello" not in learned
        assert example.tokens.supervised[-1:] == ordinary.tokens.supervised[-1:], "the end is learned where it was"
        assert example.tokens.input_ids[-1] == ordinary.tokens.input_ids[-1]
    openings = [list(example.opening) for example in sides]
    assert openings[0] == openings[1]
    prompt = p.render(made.messages, [(16, 16)], generation=True).input_ids
    assert list(prompt) == openings[0][: len(prompt)] and "yes no" in p.tokenizer.decode(openings[0][len(prompt) - 1 :])


@pytest.mark.parametrize("name", FORMATS)
def test_characters_give_their_weight_to_their_tokens(name):
    p = processor(name)
    chosen = "a cat and a dög, yes"
    weights = [[chosen.index("dög"), chosen.index(", yes"), 5.0], [chosen.index("yes"), len(chosen), 0.5]]
    side = PreferencePair.model_validate(pair(chosen=chosen, context="hello ", chosen_weights=weights)).sides[0]
    text, by_weight = words(render_example(side, p, 512), p)
    assert by_weight[5.0].strip() == "dög" and by_weight[0.5].strip() == "yes"
    assert text.startswith(chosen) and by_weight[1.0].startswith("a cat and a")
    plain = side.model_copy(update={"last_answer": None, "messages": side.messages})
    assert render_example(plain, p, 512).tokens.weights is None


def test_a_cut_keeps_the_weights_of_what_is_left():
    p = processor("chatml")
    side = PreferencePair.model_validate(pair(chosen="a cat and a dog", chosen_weights=[[0, 5, 2.0]])).sides[0]
    whole = render_example(side, p, 512)
    cut = render_example(side, p, whole.length - 2, "truncate_text")
    assert cut.tokens.weights == whole.tokens.weights[:-2] and len(cut.tokens.weights) == cut.length


def test_a_pair_is_no_sample_to_learn_from():
    with pytest.raises(BadSampleError, match="preference pair"):
        render_example(PreferencePair.model_validate(pair()), processor("chatml"), 512)


def test_words_that_took_the_place_of_others_are_the_changed_ones():
    same, short = [1, 2, 3, 4], [7, 8]
    chosen, rejected = [*same, 50, *short, 51, *same], [*same, 60, 61, *short, 62, *same, 9]
    first, second = changed_weights(chosen, rejected, 5.0)
    assert first == [1] * 4 + [5] * 4 + [1] * 4
    assert second == [1] * 4 + [5] * 5 + [1] * 5, "a short match belongs to the change, what was only added doesn't"
    assert changed_weights(same, same, 5.0) == ([1] * 4, [1] * 4)
    assert changed_weights(short, same, 5.0) == ([5] * 2, [5] * 4)


def test_pairs_are_converted_and_come_back_the_same(tmp_path):
    records = [
        pair(),
        pair(id="q", context="It is ", rejected_images=["b.png"], chosen_weights=[[0, 1, 2.0]], margin=0.5),
        pair(id="r", scores={"chosen": {"facts": 1.0}, "rejected": {"facts": 0.5, "chair": 0.25}}, kind="count"),
        pair(id="s", chosen=[{"type": "boxes", "boxes": [{"label": "cat", "box": [0, 0, 1, 0.5]}]}]),
    ]
    source = recipe(tmp_path, records).sources[0]
    first = list(READERS.get("pairs")(source.path))
    for step in ("one.parquet", "two.jsonl"):
        out = tmp_path / step
        assert convert(source, out, embed_images=False) == len(records)
        assert list(READERS.get("pairs")(out)) == first
        source = source.model_copy(update={"path": str(out)})
    kept = json.loads(out.read_text().splitlines()[0])
    assert kept["chosen"] == "a cat" and "context" not in kept and "chosen_weights" not in kept
    with pytest.raises(UserError, match="no pairs"):
        convert(source, tmp_path / "llava.json", embed_images=False)
    with pytest.raises(UserError, match="can't be put into the file"):
        convert(source, tmp_path / "embedded.parquet", embed_images=True)


def test_a_clean_copy_of_pairs_is_read_as_pairs_and_counted(tmp_path):
    records = [pair(), pair(id="q", chosen="it is a cat", rejected="it is a small dog"), pair(id="r", chosen="")]
    findings = validate(recipe(tmp_path, records), 1, fix_directory=tmp_path / "clean")
    assert (findings.pairs.pairs, findings.bad_pairs) == (2, 1)
    assert findings.pairs.summary(findings.bad_pairs).endswith("differ; 1 more (33.3 %) can't be used")
    assert findings.pairs.median_ratio == 0.9 and findings.pairs.parting_at_once == 0
    mixture = Mixture(load_recipe(str(tmp_path / "clean" / "recipe.yaml")), 0, False)
    assert [sample.id for sample in mixture.samples[:2]] == ["p", "q"]


def test_the_report_tells_how_both_answers_of_pairs_are_and_why_others_are_not_used(tmp_path):
    records = [pair(), pair(id="q", rejected="no <b>dog</b>"), pair(id="r", chosen=""), pair(id="s", rejected="a cat")]
    survey = survey_recipe(recipe(tmp_path, records))
    assert (survey.samples, survey.pairs.pairs) == (2, 2) and survey.bad_pairs == {"pair": 1, "no_difference": 1}
    write_page(tmp_path / "page.html", "r", survey)
    page = (tmp_path / "page.html").read_text()
    assert "2 pairs" in page and "no &lt;b&gt;dog&lt;/b&gt;" in page and "words rejected" in page
    assert "first words of 50.0 % differ; 2 more (50.0 %)" in page


def test_both_sides_are_shown_with_what_counts_otherwise_marked():
    p = processor("chatml")
    made = PreferencePair.model_validate(pair(chosen_weights=[[2, 5, 5.0]]))
    chosen, rejected = (coloured_tokens(render_example(side, p, 512), p) for side in made.sides)
    assert "cat" in chosen.plain and "dog" in rejected.plain
    marked = lambda text: [text.plain[s.start : s.end].strip() for s in text.spans if "underline" in str(s.style)]  # noqa: E731
    assert marked(chosen) == ["cat"] and marked(rejected) == []
