"""What is kept of images in tiles: answers are those of a fresh computation, whatever is added, taken back or repeated."""

import random
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from urllib.request import urlopen

import pytest
import torch

from mllm.checkpoint.start import build
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.inference.chat import ChatSession
from mllm.inference.decoding import Decoding
from mllm.inference.features import ImageFeatures
from mllm.inference.generate import Request, generate_answers, generate_batch
from mllm.inference.likelihood import score_answers
from mllm.inference.request import prompt_of
from mllm.model.planning import build_planner
from mllm.model.settings import ImageSettings, VideoSettings
from tests.helpers.layouts import tiled_settings
from tests.helpers.serving import client_of, question, serving, slow
from tests.helpers.tiny import save_image

DIALOGUES = 56
TILINGS, SEVERAL, GROUPS = ("square", "anyres", "anyres_max", "grid"), ("tile", "share", "square"), ("turn", "sample")
WAYS = list(product(TILINGS, SEVERAL, GROUPS))
SIZES = [(20, 12), (16, 33), (40, 40), (60, 16), (16, 16)]
WORDS = ("what is this", "and this", "is it red", "hello", "compare")
NEW_TOKENS = 3


@pytest.fixture(scope="module")
def model_and_processor(tiny_parts):
    """A model with a newline, which says different things; tests give its processor one planner or another."""
    model, processor = build(tiled_settings(tiny_parts, "anyres"))
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.eval(), processor


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("images"), random.Random(0)
    return [
        save_image(root / f"{n}.png", tuple(rng.randrange(256) for _ in range(3)), size) for n, size in enumerate(SIZES)
    ]


@pytest.fixture
def planned_by(model_and_processor, monkeypatch):
    """A function that has the processor plan by these settings of images; returns the model and it."""
    model, processor = model_and_processor

    def plan(tiling, several, several_in):
        settings = ImageSettings(tiling=tiling, several=several, several_in=several_in, max_tiles=4, map_tiles=2)
        monkeypatch.setattr(processor, "planner", build_planner(processor.geometry, settings, VideoSettings()))
        return model, processor

    return plan


def fresh(model, processor, session):
    """The answer to a session's last question, computed with nothing kept."""
    request = Request(tuple(session.messages[:-1]), tuple(session.images))
    return generate_batch(model, processor, [request], max_new_tokens=NEW_TOKENS)[0]


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_random_dialogues_answer_as_a_fresh_computation_does(planned_by, images, way):
    """Images come with any turn, the same one again, and turns are taken back; some of DIALOGUES for each of WAYS."""
    model, processor = planned_by(*way)
    for seed in range(WAYS.index(way), DIALOGUES, len(WAYS)):
        rng, session = random.Random(seed), ChatSession(model, processor, max_new_tokens=NEW_TOKENS)
        before = None
        for _ in range(5):
            if session.messages and rng.random() < 0.25:
                session.undo()
                before = None
                continue
            room = 4 - len(session.images)
            answer = session.ask(rng.choice(WORDS), rng.choices(images, k=min(room, rng.choice((0, 1, 1, 2)))))
            assert answer == fresh(model, processor, session), f"dialogue {seed}"
            if way[2] == "turn" and before is not None:
                # Nothing of what stood there is computed again, however many images came.
                assert session.last.computed_token_count <= session.last.prompt_token_count - before
            before = session.last.prompt_token_count


@pytest.mark.parametrize("several", ["share", "square"])
def test_an_image_that_a_later_one_changes_is_computed_again(planned_by, images, several):
    model, processor = planned_by("grid", several, "sample")
    session = ChatSession(model, processor, max_new_tokens=NEW_TOKENS)
    session.ask("what is this", images[2:3])
    session.ask("and this", images[3:4])
    opening = len(processor.render([Message(role="user", content="")], generation=False).input_ids)
    last = session.last
    assert last.prompt_token_count - opening <= last.computed_token_count <= last.prompt_token_count
    assert session.messages[-1].text == fresh(model, processor, session)


@pytest.mark.parametrize("tiling", ["anyres", "grid"])
def test_the_server_answers_about_tiled_images_in_flight_together_as_about_each_alone(planned_by, images, tiling):
    model, processor = planned_by(tiling, "square", "turn")
    shown = [images[:1], images[2:3], images[3:4], images[1:3], images[2:3], []]
    texts = [f"{words} {n}" for n, words in enumerate((*WORDS, "why"))]

    def alone(text, own):
        parts = (*(ImagePart() for _ in own), TextPart(text=text))
        request = Request((Message(role="user", content=parts),), tuple(own))
        return generate_answers(model, processor, [request], Decoding(max_new_tokens=NEW_TOKENS))[0].text

    wanted = [alone(*asked) for asked in zip(texts, shown, strict=True)]
    with serving((model, processor), max_new_tokens=NEW_TOKENS) as port, slow(model, 0.05):

        def ask(text, own):
            messages = [question(text, *own)]
            said = client_of(port).chat.completions.create(model="tiny", messages=messages, temperature=0)
            return said.choices[0].message.content

        with ThreadPoolExecutor(len(texts)) as clients:
            assert list(clients.map(ask, texts, shown)) == wanted
        with urlopen(f"http://127.0.0.1:{port}/metrics") as said:
            told = dict(re.findall(r"^mllm_batch_rows_(sum|count) (\S+)$", said.read().decode(), re.MULTILINE))
    assert float(told["sum"]) > float(told["count"])


@pytest.mark.parametrize("tiling", TILINGS)
def test_likelihoods_and_shared_openings_of_tiled_images_are_those_of_each_alone(planned_by, images, tiling):
    model, processor = planned_by(tiling, "share", "sample")
    shown = [images[2:3], images[2:3], images[2:4], images[2:4], images[:1]]
    requests = [
        Request(
            (Message(role="user", content=(*(ImagePart() for _ in own), TextPart(text=f"what is {n}"))),), tuple(own)
        )
        for n, own in enumerate(shown)
    ]
    answers = ["a cat", "a dog", "yes", "no", "red"]
    together = score_answers(model, processor, requests, answers)
    alone = [score_answers(model, processor, [r], [a])[0] for r, a in zip(requests, answers, strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)
    found = generate_answers(model, processor, requests, Decoding(max_new_tokens=NEW_TOKENS))
    assert sum(answer.computed_token_count for answer in found) < sum(answer.prompt_token_count for answer in found)


def test_features_of_unlike_images_are_kept_to_a_number_of_bytes(planned_by, images):
    model, processor = planned_by("grid", "tile", "turn")
    shown = [
        prompt_of(Request((Message(role="user", content=(ImagePart(),)),), (image,)), processor).shown[0]
        for image in images[:3]
    ]
    width = model.language_model.get_input_embeddings().embedding_dim
    sizes = [4 * width * image.visual.token_count for image in shown]
    assert sizes[0] == sizes[1] < sizes[2]
    features = ImageFeatures(model, processor, budget_bytes=sizes[0] + sizes[1])
    features.of(shown[:2])
    features.of(shown[:2])
    assert features.encoded == 2
    features.of([shown[2]])  # the largest: no room is left for either
    kept = features.of([shown[2]])
    assert features.encoded == 3 and [len(one) for one in kept] == [shown[2].visual.token_count]
    first, second = features.of(shown[:2])
    assert features.encoded == 5
    # Of what was computed together none holds the memory of another.
    assert [one.untyped_storage().nbytes() for one in (first, second)] == sizes[:2]
