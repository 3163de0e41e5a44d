"""Batched generation: shared openings, stop strings, streaming, sampling, log-probabilities."""

import pytest
import torch

from mllm.checkpoint.start import build
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.inference.answer import AnswerText, Stream
from mllm.inference.decoding import Decoding
from mllm.inference.features import ImageFeatures
from mllm.inference.generate import Request, generate_answers, generate_batch, generate_rows
from mllm.inference.prefix import plan_batches, plan_groups
from mllm.inference.reading import EmbeddedReader
from mllm.inference.request import prompt_of
from tests.helpers.tiny import TOKENIZERS, save_image, tiny_settings

SYSTEM = "Be kind. Answer in one word, and do so at once without any further thought."


@pytest.fixture
def images(tmp_path):
    return [save_image(tmp_path / f"{i}.png", (60 * i, 200 - 40 * i, 90), (20 + i, 12)) for i in range(3)]


def ask(text, *images, system=None):
    opening = [Message(role="system", content=system)] if system else []
    parts = (*(ImagePart() for _ in images), TextPart(text=text))
    return Request((*opening, Message(role="user", content=parts)), images)


@pytest.fixture
def requests(images):
    """Text alone, one and several images, with and without a shared opening."""
    one, two, three = images
    return [
        *(ask("what is this " * n, one, system=SYSTEM) for n in (1, 3, 2)),
        *(ask(text, two) for text in ("is it red", "yes or no", "is it red")),
        ask("compare", one, two, system=SYSTEM),
        ask("compare these", one, three, system=SYSTEM),
        *(ask(text, system=SYSTEM) for text in ("hello", "what", "a dog")),
        ask("a cat and a dog"),
        ask("hello world", two, three, two),
    ]


def plain_logits(model, processor, request, token_ids):
    """Logits at each place of an answer, by one pass over prompt and answer with no cache and no padding."""
    prompt = prompt_of(request, processor)
    ids = torch.tensor([prompt.tokens.input_ids + token_ids])
    features = ImageFeatures(model, processor).of(prompt.shown)
    with torch.inference_mode():
        embeddings = model.embed_features(ids, features)
        logits = model.language_model(inputs_embeds=embeddings, use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1]


def test_answers_of_mixed_requests_equal_those_of_asking_alone_and_logprobs_those_of_a_plain_pass(assembled, requests):
    model, processor = assembled
    decoding = Decoding(max_new_tokens=8, logprobs=True, top_logprobs=3)
    together = generate_answers(model, processor, requests, decoding)
    assert sum(a.computed_token_count for a in together) < 0.7 * sum(a.prompt_token_count for a in together)
    assert len({a.text for a in together}) > 3
    for request, answer in zip(requests, together, strict=True):
        alone = generate_answers(model, processor, [request], decoding)[0]
        assert (answer.text, answer.token_ids, answer.finish_reason) == (
            alone.text,
            alone.token_ids,
            alone.finish_reason,
        )
        expected = plain_logits(model, processor, request, answer.token_ids).log_softmax(-1)
        assert expected.argmax(-1).tolist() == list(answer.token_ids)
        for place, logprob in zip(expected, answer.logprobs, strict=True):
            assert logprob.logprob == pytest.approx(place[logprob.token_id].item(), abs=1e-4)
            assert [p for _, p in logprob.top] == pytest.approx(place.topk(3).values.tolist(), abs=1e-4)


def test_an_opening_is_shared_where_it_saves_most_and_never_cut_inside_an_image(assembled, requests):
    _, processor = assembled
    prompts = [prompt_of(r, processor) for r in requests]
    groups = plan_groups(prompts, 8)
    assert sorted(i for g in groups for i in g.members) == list(range(len(requests)))
    shared = {frozenset(g.members): g.trunk_length for g in groups if g.trunk_length}
    with_two = next(trunk for members, trunk in shared.items() if members >= {3, 4, 5})
    assert with_two >= 16 + 3
    for group in groups:
        assert len({prompts[i].key[: group.trunk_length] for i in group.members}) == 1
        for start, length in prompts[group.members[0]].tokens.image_spans:
            assert not start < group.trunk_length < start + length
    for size in (1, 2, 5):
        batches = plan_batches(plan_groups(prompts, size), prompts, size)
        assert max(sum(len(g.members) for g in batch) for batch in batches) <= size


def test_equal_prompts_that_end_in_an_image_share_what_comes_before_it(tiny_parts, images):
    model, processor = build(tiny_settings(tiny_parts, prompt_format="plain"))
    request = Request(
        (
            Message(role="system", content=SYSTEM),
            Message(role="user", content=(ImagePart(),)),
        ),
        (images[0],),
    )
    prompts = [prompt_of(request, processor)] * 3
    assert processor.image_token_id == prompts[0].tokens.input_ids[-1]
    (group,) = plan_groups(prompts, 4)
    assert group.trunk_length == prompts[0].tokens.image_spans[0][0]
    answers = generate_batch(model, processor, [request] * 3, max_new_tokens=4)
    assert answers == generate_batch(model, processor, [request], max_new_tokens=4) * 3


def test_each_distinct_image_is_encoded_once(assembled, requests, images):
    model, processor = assembled
    reader = EmbeddedReader(model, processor)
    generate_answers(model, processor, requests, Decoding(max_new_tokens=2), batch_size=2, reader=reader)
    features = reader.features
    assert features.encoded == 3
    small = ImageFeatures(model, processor, budget_bytes=1)
    shown = prompt_of(ask("what", images[1]), processor).shown
    assert torch.allclose(small.of(shown)[0], features.of(shown)[0], atol=1e-5)
    small.of(shown)
    assert small.encoded == 2


def test_a_changed_file_is_another_image(assembled, tmp_path):
    model, processor = assembled
    features = ImageFeatures(model, processor)
    path = save_image(tmp_path / "x.png", (250, 0, 0))
    shown = prompt_of(ask("what", path), processor).shown
    (before,) = features.of(shown)
    save_image(tmp_path / "x.png", (0, 0, 250), (44, 31))
    assert not torch.allclose(before, features.of(shown)[0])


def test_an_answer_stops_before_a_stop_string_and_the_pieces_join_to_the_text(assembled, images):
    model, processor = assembled
    requests = [ask("what is this", images[0]), ask("hello world this")]
    free = generate_answers(model, processor, requests, Decoding(max_new_tokens=24))
    assert all(len(answer.text) > 8 for answer in free)
    stop = free[0].text[4:7]
    pieces = [[], []]
    rows = [
        Stream(processor, Decoding(max_new_tokens=24, stop=(stop, "zzz")), pieces[0].append),
        Stream(processor, Decoding(max_new_tokens=5), pieces[1].append),
    ]
    stopped, short = generate_rows(model, processor, [prompt_of(r, processor) for r in requests], rows)
    assert stopped.text == free[0].text[: free[0].text.index(stop)].rstrip() and stopped.finish_reason == "stop"
    assert len(stopped.token_ids) < len(free[0].token_ids)
    assert short.token_ids == free[1].token_ids[:5] and short.finish_reason == "length"
    assert "".join(pieces[0]) == stopped.text and "".join(pieces[1]) == short.text
    assert len(pieces[1]) > 1


def test_a_cancelled_row_ends_and_its_neighbour_goes_on(assembled):
    model, processor = assembled
    requests = [ask("hello world"), ask("what is this")]
    free = generate_answers(model, processor, requests, Decoding(max_new_tokens=6))
    rows = [Stream(processor, Decoding(max_new_tokens=6), is_cancelled=lambda: len(rows[0].token_ids) >= 2)]
    rows.append(Stream(processor, Decoding(max_new_tokens=6)))
    cancelled, other = generate_rows(model, processor, [prompt_of(r, processor) for r in requests], rows)
    assert cancelled.finish_reason == "cancelled" and cancelled.token_ids == free[0].token_ids[:2]
    assert other == free[1]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "wordpiece"])
def test_pieces_of_text_are_whole_characters_and_join_to_what_the_tokenizer_decodes(kind):
    tokenizer = TOKENIZERS[kind]()
    text = " hello world  this is a dog, ünïcode 你好 🙂🙂 and a cat \n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    words = AnswerText(tokenizer)
    pieces = [words.add(i) for i in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    pieces.append(words.close())
    assert "".join(pieces) == words.text == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_a_stop_string_over_several_tokens_never_shows(tokenizer_factory):
    tokenizer = tokenizer_factory()
    words = AnswerText(tokenizer, ("USER:", "\n\n"))
    shown = ""
    for i in tokenizer("yes USE it USER: no", add_special_tokens=False).input_ids:
        shown += words.add(i)
        assert "USER" not in shown
    assert words.stopped and words.close() == "" and shown == words.text == "yes USE it"


def test_sampling_follows_the_seed_of_torch_and_leaves_greedy_rows_alone(assembled):
    model, processor = assembled
    requests = [ask("hello world")] * 3
    greedy = Decoding(max_new_tokens=12)
    wild = Decoding(max_new_tokens=12, temperature=3.0)
    outcomes = []
    for _ in range(2):
        torch.manual_seed(5)
        outcomes.append(generate_answers(model, processor, requests, [greedy, wild, wild]))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0].text == generate_answers(model, processor, requests[:1], greedy)[0].text
    assert outcomes[0][1].token_ids != outcomes[0][2].token_ids
    top = [Decoding(max_new_tokens=12, temperature=3.0, top_k=1), Decoding(12, 3.0, 1e-6), greedy]
    narrow = generate_answers(model, processor, requests, top)
    assert len({answer.token_ids for answer in narrow}) == 1


def test_bad_settings_and_too_long_prompts_are_named(assembled):
    model, processor = assembled
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}, {"stop": ("",)}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Decoding(**wrong)
    with pytest.raises(UserError, match=r"prompt of \d+ tokens and 500 new ones exceed the model's context of 512"):
        generate_answers(model, processor, [ask("hello " * 30)], Decoding(max_new_tokens=500))
    with pytest.raises(UserError, match=r"gone\.png"):
        generate_answers(model, processor, [ask("hello", "gone.png")], Decoding())
