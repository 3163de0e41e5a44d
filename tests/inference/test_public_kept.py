"""Models of transformers in chat, batches, server and evaluation: what was computed is kept, and changes nothing."""

import random
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.evaluation.asking import Question
from mllm.evaluation.medium import Medium
from mllm.evaluation.subjects.local import LocalModel
from mllm.inference.answer import Stream
from mllm.inference.chat import ChatSession
from mllm.inference.decoding import Decoding
from mllm.inference.generate import Request, generate_answers, generate_batch
from mllm.inference.likelihood import score_answers
from mllm.inference.reading import ContinuedReader, WholeReader, reader_of
from mllm.inference.request import prompt_of
from mllm.inference.serve.batch_queue import BatchQueue, Job
from mllm.model.public import wrap
from tests.helpers.public_models import MAKERS, tiny
from tests.helpers.tiny import save_image

NEW_TOKENS = 4
SYSTEM = "Be kind. Answer in one word, and do so at once without any further thought."
# Where an image becomes something else beside others, a later one leaves nothing of the earlier to go on from.
REMADE = "whole_samples"


@pytest.fixture(scope="module", params=MAKERS)
def wrapped(request):
    return request.param, *wrap(*tiny(request.param))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    colours = [(200, 30, 30), (20, 130, 30), (9, 60, 220)]
    sizes = [(70, 24), (18, 40), (33, 33)]
    return [save_image(root / f"{n}.png", *own) for n, own in enumerate(zip(colours, sizes, strict=True))]


def ask(text, *images, system=None):
    opening = [Message(role="system", content=system)] if system else []
    parts = (*(ImagePart() for _ in images), TextPart(text=text))
    return Request((*opening, Message(role="user", content=parts)), images)


def so_far(session):
    """What a session's last answer was asked with."""
    return Request(tuple(session.messages[:-1]), tuple(session.images))


def transformers_logits(model, processor, request, token_ids):
    """[answer, K]: of transformers' own whole pass, which counts positions and makes masks by itself and keeps nothing."""
    prompt = prompt_of(request, processor)
    tokens = replace(prompt.tokens, input_ids=(*prompt.tokens.input_ids, *token_ids))
    ids = torch.tensor([tokens.input_ids])
    tiles = [processor.read_tiles(own.source, own.visual) for own in prompt.shown]
    media = processor.prepare(tokens.visuals, tiles) if tiles else {}
    types = processor.token_types(tokens)
    told = None if types is None else types[None]
    with torch.no_grad():
        logits = model.peer(**model.whole_inputs(ids, torch.ones_like(ids), told, media), use_cache=False).logits
    return logits[0, len(prompt) - 1 : -1]


@contextmanager
def watched(model):
    """Yields (tokens that enter the decoder, logits that are answered by, images that are encoded), as they come."""
    tokens, logits, encoded = [], [], []
    decoder, encoder = model.adapted_module("language_model"), model.adapted_module("vision_encoder")
    handles = [
        decoder.register_forward_pre_hook(
            lambda _, __, given: tokens.append(given["inputs_embeds"][..., 0].numel()), with_kwargs=True
        ),
        model.head.register_forward_hook(lambda _, __, out: logits.append(out[0])),
        encoder.register_forward_pre_hook(lambda *_: encoded.append(1)),
    ]
    yield tokens, logits, encoded
    for handle in handles:
        handle.remove()


def test_a_turn_computes_its_own_tokens_alone_and_has_the_logits_of_transformers_whole_pass(wrapped, images):
    name, model, processor = wrapped
    session = ChatSession(model, processor, max_new_tokens=NEW_TOKENS)
    known = 0
    turns = [("what is this", images[:1]), ("and so", []), ("and these", images[1:]), ("which of them", [])]
    for number, (text, shown) in enumerate(turns):
        with watched(model) as (tokens, logits, encoded):
            session.ask(text, shown)
        last, remade = session.last, name == REMADE and number == 2
        assert last.computed_token_count + len(last.token_ids) - 1 == sum(tokens)
        assert remade or last.computed_token_count <= last.prompt_token_count - known
        assert bool(encoded) == bool(shown)
        known = last.prompt_token_count
        fresh = transformers_logits(model, processor, so_far(session), last.token_ids)
        assert fresh.argmax(-1).tolist() == list(last.token_ids)
        assert (torch.stack(logits) - fresh).abs().max() <= 1e-5


def test_random_dialogues_answer_as_a_fresh_computation_does(wrapped, images):
    """Images come with any turn, the same one again, and turns are taken back."""
    _, model, processor = wrapped
    for seed in range(2):
        rng, session = random.Random(seed), ChatSession(model, processor, max_new_tokens=2)
        for _ in range(5):
            if session.messages and rng.random() < 0.3:
                session.undo()
                continue
            shown = rng.choices(images, k=min(3 - len(session.images), rng.choice((0, 1, 2))))
            answer = session.ask(rng.choice(["what", "is it red", "yes or no"]), shown)
            fresh = transformers_logits(model, processor, so_far(session), session.last.token_ids)
            assert fresh.argmax(-1).tolist() == list(session.last.token_ids), f"dialogue {seed}"
            assert answer == session.messages[-1].text


def test_questions_about_an_image_compute_it_and_what_opens_them_once(wrapped, images):
    _, model, processor = wrapped
    texts = ["what is this", "is it a dog or a cat", "how many"]
    requests = [ask(text, image, system=SYSTEM) for image in images[:2] for text in texts]
    decoding = Decoding(NEW_TOKENS, logprobs=True)
    alone = [generate_answers(model, processor, [request], decoding)[0] for request in requests]
    with watched(model) as (tokens, _, encoded):
        together = generate_answers(model, processor, requests, decoding)
    prompts = [prompt_of(request, processor) for request in requests]
    ends = [sum(prompt.tokens.image_spans[0]) for prompt in prompts]
    saved = 2 * (ends[0] + ends[3])
    assert sum(answer.computed_token_count for answer in together) <= sum(map(len, prompts)) - saved
    # Rows are padded to the longest, and the openings to the longer.
    rest = max(len(prompt) - end for prompt, end in zip(prompts, ends, strict=True))
    assert sum(tokens) <= 2 * max(ends) + 6 * (rest + NEW_TOKENS)
    assert len(encoded) == 1
    for answer, own in zip(together, alone, strict=True):
        assert answer.token_ids == own.token_ids
        expected = [token.logprob for token in own.logprobs]
        assert [token.logprob for token in answer.logprobs] == pytest.approx(expected, abs=1e-5)


def test_several_answers_to_a_prompt_compute_it_once_and_follow_the_seed(wrapped, images):
    _, model, processor = wrapped
    request = ask("what is this", images[0])
    greedy, wild = Decoding(NEW_TOKENS), Decoding(NEW_TOKENS, temperature=3.0)
    outcomes = []
    for _ in range(2):
        torch.manual_seed(5)
        with watched(model) as (tokens, _, encoded):
            outcomes.append(generate_answers(model, processor, [request] * 4, [greedy, wild, wild, wild]))
        assert sum(tokens) == len(prompt_of(request, processor)) - 1 + 4 * NEW_TOKENS and len(encoded) == 1
    assert outcomes[0] == outcomes[1] and len({answer.token_ids for answer in outcomes[0]}) > 2
    assert outcomes[0][0].text == generate_batch(model, processor, [request], NEW_TOKENS)[0]


def test_options_are_scored_behind_one_prompt(wrapped, images):
    _, model, processor = wrapped
    options = ["a cat", "a dog and a cat", "no"]
    request = ask("what is this", images[0])
    with watched(model) as (tokens, _, encoded):
        scores = score_answers(model, processor, [request] * 3, options)
    prompt = prompt_of(request, processor)
    assert sum(tokens) < 1.5 * len(prompt) + sum(map(len, options)) * 3 and len(encoded) == 1
    for option, score in zip(options, scores, strict=True):
        tokens = processor.render((*request.messages, Message(role="assistant", content=option)), [(24, 70)])
        end = max(place for place, flag in enumerate(tokens.supervised) if flag) + 1
        ids = tokens.input_ids[len(prompt) : end]
        logprobs = transformers_logits(model, processor, request, ids).log_softmax(-1)
        assert score == pytest.approx(float(logprobs.gather(1, torch.tensor(ids)[:, None]).sum()), abs=1e-4)


def test_a_model_with_a_state_that_keys_and_values_do_not_hold_is_computed_from_the_start(images):
    model, processor = wrap(*tiny("several_axes"))
    assert isinstance(reader_of(model, processor), ContinuedReader)
    model, processor = wrap(*tiny("several_axes"))
    first = model.decoder_layers()[0]
    first.register_forward_hook(lambda _, __, out: out + 0.1 * out.cumsum(1))
    assert isinstance(reader_of(model, processor), WholeReader)
    session = ChatSession(model, processor, max_new_tokens=1)
    for text in ("what is this", "and so"):
        session.ask(text, images[:1] if text.startswith("what") else [])
        fresh = transformers_logits(model, processor, so_far(session), session.last.token_ids)
        assert fresh.argmax(-1).tolist() == list(session.last.token_ids)
        assert session.last.computed_token_count == session.last.prompt_token_count


def test_an_image_that_a_later_one_changes_in_silence_is_computed_again(images, monkeypatch):
    model, processor = wrap(*tiny("several_axes"))
    prepare = processor.prepare

    def dimmed(visuals, tiles):
        media = prepare(visuals, tiles)
        return media | {"pixel_values": media["pixel_values"] / len(visuals)}

    monkeypatch.setattr(processor, "prepare", dimmed)
    session = ChatSession(model, processor, max_new_tokens=1)
    session.ask("what is this", images[:1])
    session.ask("and this", images[1:2])
    (start, _), _ = prompt_of(so_far(session), processor).tokens.image_spans
    assert session.last.computed_token_count == session.last.prompt_token_count - start
    fresh = transformers_logits(model, processor, so_far(session), session.last.token_ids)
    assert fresh.argmax(-1).tolist() == list(session.last.token_ids)


def test_the_servers_queue_answers_what_waits_together_as_each_alone(wrapped, images):
    _, model, processor = wrapped
    requests = [ask("what is this", images[0]), ask("is it red", images[0]), ask("hello"), ask("both", *images[:2])]
    queue, answered = BatchQueue(model, processor, max_batch=8, max_queue=8), {}
    for number, request in enumerate(requests):
        rows = [Stream(processor, Decoding(NEW_TOKENS)) for _ in range(1 + number % 2)]
        done = lambda said, number=number: answered.__setitem__(number, said)  # noqa: E731
        queue.submit(Job(prompt_of(request, processor), rows, None, float("inf"), done))
    queue.start()
    queue.stop()
    for number, request in enumerate(requests):
        wanted = generate_batch(model, processor, [request], NEW_TOKENS)[0]
        assert [answer.text for answer in answered[number]] == [wanted] * (1 + number % 2)


def test_benchmarks_ask_it_as_they_ask_any_model(wrapped, images):
    _, model, processor = wrapped
    shown = (Medium(images[0]),)
    free = [Question(text, shown, NEW_TOKENS) for text in ("what is this", "is it red")]
    chosen = [Question(text, shown, NEW_TOKENS, ("yes", "no")) for text in ("a dog", "a cat")]
    replies = {}
    LocalModel(model, processor, 8, {}).answer(free, replies.update)
    LocalModel(model, processor, 8, {}).answer(chosen, replies.update)
    assert [replies[q].text for q in free] == [
        generate_batch(model, processor, [q.request()], NEW_TOKENS)[0] for q in free
    ]
    for question in chosen:
        scores = score_answers(model, processor, [question.request()] * 2, question.options)
        assert replies[question].text == question.options[scores.index(max(scores))]
