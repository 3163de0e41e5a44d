"""`/v1/images/generations`: OpenAI's fields, and the pictures of the command."""

import base64
import io

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from mllm.cli import main
from mllm.generation.opening import load_generator
from mllm.generation.pictures import draw_pictures
from mllm.generation.sampler import Sampling
from mllm.generation.serve import PictureServerSettings, build_picture_app


@pytest.fixture(scope="module")
def generator(saved):
    return load_generator(saved)


def client_of(generator, **settings):
    return TestClient(build_picture_app(generator, PictureServerSettings("tiny", Sampling(steps=2), **settings)))


def test_pictures_are_those_of_their_seeds_and_any_openai_client_can_read_them(generator):
    body = {
        "prompt": "a red square",
        "model": "tiny",
        "n": 2,
        "size": "16x16",
        "seed": 5,
        "guidance": 2.0,
        "user": "me",
    }
    answer = client_of(generator).post("/v1/images/generations", json=body).json()
    own = draw_pictures(generator, ["a red square"] * 2, [5, 6], Sampling(steps=2, guidance=2.0))
    files = [base64.b64decode(one["b64_json"]) for one in answer["data"]]
    assert [Image.open(io.BytesIO(file)).tobytes() for file in files] == [picture.tobytes() for picture in own]
    assert [one["seed"] for one in answer["data"]] == [5, 6] and answer["created"] > 0


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"prompt": ""}, 400, "prompt"),
        ({"n": 11}, 400, "n: "),
        ({"size": "512x512"}, 400, "draws 16x16, not 512x512"),
        ({"response_format": "url"}, 400, "response_format"),
        ({"steps": 0}, 400, "steps 0"),
        ({"guidance": -1.0}, 400, "guidance -1.0"),
        ({"seed": -1}, 400, "seed -1"),
        ({"seed": 2**70}, 400, "seed"),
        ({"model": "other"}, 404, "not served here"),
        ({"colour": "red"}, 400, "colour"),
    ],
)
def test_what_cannot_be_drawn_names_its_field(generator, change, status, told):
    answer = client_of(generator).post("/v1/images/generations", json={"prompt": "a square"} | change)
    assert answer.status_code == status and told in answer.json()["error"]["message"]


def test_a_late_picture_a_full_queue_and_a_wrong_key_have_their_codes(generator):
    body = {"prompt": "a square"}
    assert client_of(generator, timeout_s=1e-9).post("/v1/images/generations", json=body).status_code == 504
    assert client_of(generator, max_queue=0).post("/v1/images/generations", json=body).status_code == 429
    guarded = client_of(generator, api_key="secret")
    assert guarded.post("/v1/images/generations", json=body).status_code == 401
    assert guarded.get("/health").json() == {"status": "ok", "model": "tiny"}


def test_options_for_answers_in_words_are_refused_where_pictures_are_drawn(saved, capsys):
    with pytest.raises(SystemExit) as left:
        main(["serve", str(saved), "--quantize", "4bit"])
    assert left.value.code == 2 and "--quantize is for models that answer in words" in capsys.readouterr().err
