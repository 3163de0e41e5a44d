"""Several sampled answers to a prompt: a function of the weights, the prompt and a seed, and of nothing beside them."""

from dataclasses import replace

import pytest
import torch

from mllm.conversation.schema import Message
from mllm.inference.answer import Stream
from mllm.inference.decoding import Decoding, RowProcessors, drawn
from mllm.inference.generate import Request, generate_rows
from mllm.inference.request import prompt_of
from mllm.inference.sampling import sample_answers, seed_of


@pytest.fixture(scope="module")
def prompts(assembled, tmp_path_factory):
    from tests.helpers.tiny import save_image

    path = save_image(tmp_path_factory.mktemp("image") / "a.png")
    texts = [({"type": "image"}, {"type": "text", "text": "what is this"}), "hello world, and a dog and a cat"]
    shown = [(path,), ()]
    return [
        prompt_of(Request((Message(role="user", content=text),), images), assembled[1])
        for text, images in zip(texts, shown, strict=True)
    ]


def test_a_sampled_answer_depends_on_its_seed_and_on_no_answer_beside_it(assembled, prompts):
    decoding = Decoding(max_new_tokens=6, temperature=1.5)
    seeds = [[seed_of("s", p, n) for n in range(4)] for p in range(2)]
    before = torch.get_rng_state()
    together = sample_answers(*assembled, prompts, seeds, decoding, batch_size=8)
    assert torch.equal(torch.get_rng_state(), before)
    for batch_size in (1, 3):
        again = sample_answers(*assembled, prompts, seeds, decoding, batch_size=batch_size)
        assert [[a.token_ids for a in own] for own in again] == [[a.token_ids for a in own] for own in together]
    (alone,) = sample_answers(*assembled, prompts[1:], [seeds[1][2:3]], decoding)
    assert alone[0].token_ids == together[1][2].token_ids
    assert len({answer.token_ids for own in together for answer in own}) > 4
    special = {*assembled[1].tokenizer.all_special_ids} - {*assembled[1].stop_token_ids}
    assert assembled[1].image_token_id in special
    assert not special & {token for own in together for answer in own for token in answer.token_ids}


def test_greedy_rows_and_rows_without_a_seed_stay_what_they_are_beside_seeded_ones(assembled, prompts):
    greedy = Decoding(max_new_tokens=6)
    model, processor = assembled

    def answered(*decodings):
        rows = [Stream(processor, decoding) for decoding in decodings]
        return [a.token_ids for a in generate_rows(model, processor, [prompts[0]] * len(rows), rows)]

    alone, seeded = answered(greedy)[0], replace(greedy, temperature=1.0, seed=3)
    assert answered(seeded, greedy, replace(greedy, temperature=1.0))[:2] == [answered(seeded)[0], alone]


def test_tokens_are_drawn_by_their_probabilities_and_forbidden_ones_never():
    scores = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    numbers = [(n + 0.5) / 1000 for n in range(1000)]
    counts = drawn(scores.expand(1000, -1), numbers)[:, 0].bincount(minlength=4) / 1000
    assert torch.allclose(counts, scores[0].softmax(-1), atol=2e-3)
    decodings = [Decoding(temperature=1.0, seed=n, forbidden=(2,)) for n in range(50)] + [Decoding(forbidden=(2,))]
    found = RowProcessors(decodings)(torch.zeros(51, 1, dtype=torch.int64), scores.expand(51, -1)).argmax(-1)
    assert set(found[:50].tolist()) == {0, 1} and found[50] == 1
