"""Contrast decoding: two whole passes at every token, nothing at a strength of 0, and who may be asked."""

import json
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

import mllm
from mllm.conversation.schema import Message
from mllm.errors import UserError
from mllm.evaluation.asking import Question
from mllm.evaluation.medium import Medium
from mllm.evaluation.subjects.endpoint import content_of
from mllm.inference.cache import new_cache
from mllm.inference.chat import ChatSession
from mllm.inference.contrast import Against, Contrast
from mllm.inference.decoding import Decoding
from mllm.inference.generate import Request, generate_answers
from mllm.inference.reading import reader_of
from mllm.inference.request import prompt_of
from mllm.inference.rivals import Rivals
from mllm.model.public import wrap
from tests.helpers.public_models import tiny
from tests.helpers.tiny import save_image

NEW_TOKENS = 5


@pytest.fixture(scope="module", params=["from parts", "several_axes", "spans_and_windows"])
def subject(request, assembled):
    return assembled if request.param == "from parts" else wrap(*tiny(request.param))


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    red, blue = save_image(root / "red.png"), save_image(root / "blue.png", (0, 0, 255), (24, 40))

    def ask(text, image):
        return Request((Message(role="user", content=({"type": "image"}, {"type": "text", "text": text})),), (image,))

    return [ask("what is this", red), ask("is it red or blue, or a dog", red), ask("what", blue)]


def whole_pass(model, processor, prompt, token_ids):
    """Logits [K] behind a prompt and tokens of its answer, with nothing kept."""
    for token_id in token_ids:
        prompt = prompt.followed_by(token_id)
    reader = reader_of(model, processor)
    empty = torch.zeros(1, 0, dtype=torch.int64)
    return reader.logits(new_cache(), empty, reader.stretch([prompt], [0], [len(prompt)]), 1)[0, -1].float()


@pytest.mark.parametrize("against", get_args(Against))
def test_every_token_is_chosen_by_the_logits_of_two_whole_passes(subject, requests, against, monkeypatch):
    seen = []
    own = Rivals.__call__

    def recorded(self, input_ids, scores):
        out = own(self, input_ids, scores)
        seen.append({row: out[row] for row in self._rows})
        return out

    monkeypatch.setattr(Rivals, "__call__", recorded)
    contrast = Contrast(against, alpha=1.5, beta=0.05, noise=0.9)
    decodings = [Decoding(NEW_TOKENS, contrast=contrast), Decoding(NEW_TOKENS), Decoding(NEW_TOKENS, contrast=contrast)]
    answers = generate_answers(*subject, requests, decodings)
    assert answers[1].token_ids == generate_answers(*subject, requests[1:2], Decoding(NEW_TOKENS))[0].token_ids
    compared = 0
    for number in (0, 2):
        prompt = prompt_of(requests[number], subject[1], contrast.rival(requests[number]))
        for place, token_id in enumerate(answers[number].token_ids):
            written = answers[number].token_ids[:place]
            logits = [whole_pass(*subject, shown, written) for shown in (prompt, prompt.rival)]
            expected = (2.5 * logits[0] - 1.5 * logits[1]).masked_fill(
                logits[0] < logits[0].max() + math.log(0.05), -torch.inf
            )
            (row,) = [r for r, found in seen[place].items() if torch.allclose(found, expected, rtol=1e-4, atol=1e-5)]
            assert int(seen[place][row].argmax()) == token_id
            compared += 1
    assert compared > 4


def test_a_strength_of_0_writes_what_greedy_decoding_writes(subject, requests):
    plain = [answer.token_ids for answer in generate_answers(*subject, requests, Decoding(NEW_TOKENS))]
    for contrast in (Contrast("noise", alpha=0.0), Contrast("no_image", alpha=0.0, beta=0.0)):
        decoding = Decoding(NEW_TOKENS, contrast=contrast)
        assert [answer.token_ids for answer in generate_answers(*subject, requests, decoding)] == plain


def test_log_probabilities_that_are_kept_are_the_models_own(assembled, requests):
    contrast = Contrast("no_image", alpha=3.0, beta=0.0)
    (answer,) = generate_answers(*assembled, requests[:1], Decoding(NEW_TOKENS, logprobs=True, contrast=contrast))
    prompt = prompt_of(requests[0], assembled[1])
    for place, token in enumerate(answer.logprobs):
        own = whole_pass(*assembled, prompt, answer.token_ids[:place]).log_softmax(-1)
        assert token.logprob == pytest.approx(float(own[token.token_id]), abs=1e-4)


def test_a_chat_contrasts_every_turn(assembled, requests, tmp_path):
    contrast = Contrast("noise", alpha=1.0, noise=1.0)
    session = ChatSession(*assembled, max_new_tokens=NEW_TOKENS, contrast=contrast)
    session.ask("what is this", requests[0].images)
    session.ask("and now")
    whole = Request(tuple(session.messages[:-1]), tuple(session.images))
    (fresh,) = generate_answers(*assembled, [whole], Decoding(NEW_TOKENS, contrast=contrast))
    assert session.last.token_ids == fresh.token_ids


def test_the_strength_grows_with_the_answer_where_it_decays():
    growing = Contrast("no_image", decay=0.02)
    assert growing.strength(0) == 0.0
    gamma = math.exp(-0.02 * 200)
    assert growing.strength(200) == pytest.approx((1 - gamma) / gamma, rel=1e-6) == pytest.approx(53.6, abs=0.01)
    logits, rival = torch.tensor([[1.0, 2.0, -9.0]]), torch.tensor([[0.0, 3.0, -99.0]])
    assert torch.equal(replace(growing, beta=0.0).scores(logits, rival, 0), logits)
    assert Contrast("noise", alpha=1.0, beta=0.1).scores(logits, rival, 0).tolist() == [[2.0, 1.0, -math.inf]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": -1.0}, "contrast.alpha is -1.0; it has to be a number from 0 on"),
        ({"beta": 1.5}, "contrast.beta is 1.5; it has to be from 0 to 1"),
        ({"decay": math.nan}, "contrast.decay is nan"),
        ({"noise": 0.0}, "contrast.noise is 0.0"),
        ({"instruction": " "}, "contrast.instruction is ' '"),
    ],
)
def test_what_is_no_contrast_is_said_in_a_line(values, message):
    with pytest.raises(UserError, match=message):
        Contrast("noise", **values)


def test_a_conversation_without_images_has_no_rival_that_sees_less(requests):
    words = Request((Message(role="user", content="hello"),))
    with pytest.raises(UserError, match="a contrast against no_image needs an image or a video"):
        Contrast("no_image").rival(words)
    assert Contrast("instruction").rival(words).messages[0].role == "system"
    with pytest.raises(UserError, match="takes images that are files"):
        Contrast("noise").rival(replace(requests[0], images=(b"png",)))


def test_an_evaluation_asks_greedily_and_with_a_strength_of_0_beside(assembled, requests, tmp_path):
    lines = [
        {"image": str(requests[0].images[0]), "question": "what is this", "answer": "red"},
        {"question": "hello world", "answer": "hello"},
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    contrast = Contrast("no_image", alpha=5.0, beta=0.0)
    conditions = ("model", "contrasted", "contrast_0")
    outcome = mllm.evaluate(assembled, str(tmp_path / "own.jsonl"), conditions=conditions, contrast=contrast)
    (answers,) = outcome.answers.values()
    said = {c: [answer.answer for answer in answers if answer.condition == c] for c in conditions}
    assert said["contrast_0"] == said["model"] != said["contrasted"]
    official = next(iter(outcome.official.values()))
    assert official["contrast_0"]["begins_with_yes"] == official["model"]["begins_with_yes"] == 0.0
    assert said["contrasted"][1] == said["model"][1]  # nothing in it could be hidden
    with pytest.raises(UserError, match="contrasted: say with what words are contrasted"):
        mllm.evaluate(assembled, str(tmp_path / "own.jsonl"), conditions=("model", "contrasted"))
    with pytest.raises(UserError, match="an endpoint shows no logits to contrast"):
        content_of(Question("what", (Medium(str(requests[0].images[0])),), 4, contrast=contrast))
