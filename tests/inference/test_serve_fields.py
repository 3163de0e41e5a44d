"""Every field of OpenAI's schema: null and what asks for nothing is taken, what asks for something is refused by name."""

import base64
import http.client
import json
import typing

import openai
import pytest
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
    completion_create_params,
)
from openai.types.chat.chat_completion_content_part_image_param import ImageURL
from pydantic import ValidationError

from mllm.errors import UserError
from mllm.inference.serve.app import ServerSettings
from mllm.inference.serve.protocol import ChatCompletionRequest, FieldError
from tests.helpers.serving import RED, client_of, question, serving

# Field → values that are served or ask for nothing, and values that are refused.
TOOL = {"type": "function", "function": {"name": "look"}}
FIELDS = {
    "model": (["tiny"], [None, 5, ["tiny"]]),
    "messages": ([[{"role": "user", "content": "hello"}]], [None, [], "hello"]),
    "audio": ([], [{"voice": "alloy", "format": "mp3"}, {}, False]),
    "frequency_penalty": ([0, 0.0], [1, -0.5, "0", False]),
    "function_call": (["none", "auto"], ["look", {"name": "look"}]),
    "functions": ([[]], [[{"name": "look"}], {}]),
    "logit_bias": ([{}, {"5": 0}], [{"5": 100}, [], {"5": "0"}]),
    "logprobs": ([True, False], ["yes", 1]),
    "max_completion_tokens": ([1, 5], [0, "5", 1.5]),
    "max_tokens": ([1, 5], [0, "5", True]),
    "metadata": ([{}, {"run": "7"}, {"run": None}], ["7", {"run": 7}]),
    "modalities": ([[], ["text"]], [["text", "audio"], ["audio"], "text"]),
    "moderation": ([], [{"model": "omni"}, {}]),
    "n": ([1, 16], [0, 17, "1", True]),
    "parallel_tool_calls": ([True, False], ["yes", 1]),
    "prediction": ([], [{"type": "content", "content": "red"}]),
    "presence_penalty": ([0], [0.1]),
    "prompt_cache_key": (["a", ""], [5]),
    "prompt_cache_options": ([{}, {"mode": "implicit"}], [{"mode": "explicit"}]),
    "prompt_cache_retention": (["in_memory"], ["24h"]),
    "reasoning_effort": (["none"], ["low", "high"]),
    "response_format": (
        [{"type": "text"}, {"type": "text", "json_schema": None}],
        [{"type": "json_object"}, {"type": "json_schema"}, "text", {}],
    ),
    "safety_identifier": (["u"], [{}]),
    "seed": ([0, -1], [2**64, True, "0"]),
    "service_tier": (["auto", "default"], ["flex", "priority"]),
    "stop": (["a", ["a", "b"], []], [[""], ["a"] * 5, 0]),
    "store": ([False], [True, "no", 0]),
    "stream": ([True, False], ["maybe", 0]),
    "stream_options": (
        [{}, {"include_usage": None}, {"include_usage": True, "include_obfuscation": False}],
        [{"a": 1}],
    ),
    "temperature": ([0, 0.5, 2], [-1, 3, "hot"]),
    "tool_choice": (["none", "auto"], ["required", TOOL]),
    "tools": ([[]], [[TOOL], {}]),
    "top_logprobs": ([0], [2, 21]),
    "top_p": ([1, 0.5], [0, 1.5]),
    "user": (["me"], [5]),
    "verbosity": (["medium"], ["low", "high"]),
    "web_search_options": ([], [{}, {"search_context_size": "low"}]),
    "functions_of_tomorrow": ([], [[], {}, False, 0]),
}
REQUIRED = {"model", "messages"}


def fields_of(kind):
    return set(typing.get_type_hints(kind))


def body(**change):
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], **change}


def refused_fields(change):
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate(body(**change))
    return {str(error["loc"][0]) for error in caught.value.errors()}


def test_no_field_of_the_clients_schema_is_forgotten():
    known = fields_of(completion_create_params.CompletionCreateParamsNonStreaming)
    known |= fields_of(completion_create_params.CompletionCreateParamsStreaming)
    assert known <= set(FIELDS)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_null_and_what_asks_for_nothing_is_taken_and_what_asks_for_something_names_the_field(field):
    taken, refused = FIELDS[field]
    for value in [*taken, *([] if field in REQUIRED else [None])]:
        ChatCompletionRequest.model_validate(body(**{field: value})).request(None)
    for value in refused:
        assert refused_fields({field: value}) == {field}


ANSWER = {"role": "assistant", "content": "a dog"}
# Of a turn: role → fields and values that are taken, and those that are refused.
TURNS = {
    "assistant": (
        ChatCompletionAssistantMessageParam,
        {
            "content": ["a dog", [{"type": "text", "text": "a dog"}], [{"type": "refusal", "refusal": "no"}], None, ""],
            "refusal": ["I won't"],
            "annotations": [[], [{"type": "url_citation", "url_citation": {}}]],
            "audio": [],
            "function_call": [],
            "tool_calls": [[]],
            "name": ["bot"],
            "role": ["assistant"],
        },
        {"tool_calls": [[TOOL]], "function_call": [{"name": "look"}], "audio": [{"id": "1"}], "content": [5]},
    ),
    "user": (
        ChatCompletionUserMessageParam,
        {"content": ["hello", [{"type": "text", "text": "hello"}]], "name": ["me"], "role": ["user"]},
        {"content": [None, 5, [None], [{"type": "input_audio"}]], "refusal": ["no"], "tool_calls": [[TOOL]]},
    ),
    "system": (
        ChatCompletionSystemMessageParam,
        {"content": ["be kind"], "name": ["boss"], "role": ["system", "developer"]},
        {"content": [None], "role": ["tool", "function", None]},
    ),
}


def turns_with(role, change):
    system, asked = {"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}
    own = {"assistant": ANSWER, "user": asked, "system": system}[role] | change
    return {
        "assistant": [asked, own, asked],
        "user": [own],
        "system": [own, asked],
    }[role]


@pytest.mark.parametrize("role", sorted(TURNS))
def test_a_turn_may_carry_what_the_client_puts_into_it(role):
    kind, taken, refused = TURNS[role]
    assert fields_of(kind) | fields_of(ChatCompletionDeveloperMessageParam) <= set(taken)
    place = {"assistant": 1, "user": 0, "system": 0}[role]
    for field, values in taken.items():
        for value in [*values, *([] if field in ("content", "role") else [None])]:
            ChatCompletionRequest.model_validate(body(messages=turns_with(role, {field: value}))).request(None)
    for field, values in refused.items():
        for value in values:
            with pytest.raises(ValidationError) as caught:
                ChatCompletionRequest.model_validate(body(messages=turns_with(role, {field: value})))
            assert caught.value.errors()[0]["loc"][:3] == ("messages", place, field)


def test_a_refusal_is_what_an_assistant_said():
    turns = turns_with("assistant", {"content": None, "refusal": "I won't"})
    assert ChatCompletionRequest.model_validate(body(messages=turns)).request(None).messages[1].text == "I won't"


def test_the_clients_own_message_is_taken_back(port):
    client, asked = client_of(port), question("what is this")
    answer = client.chat.completions.create(model="tiny", messages=[asked], temperature=0).choices[0].message
    for own in (answer.model_dump(), answer.model_dump(exclude_unset=True), answer):
        again = client.chat.completions.create(model="tiny", messages=[asked, own, asked], temperature=0)
        assert again.choices[0].message.content is not None


PAYLOAD = RED.partition(",")[2]
SPELLINGS = {
    "as it is": RED,
    "no subtype": "data:image;base64," + PAYLOAD,
    "no media type": "data:;base64," + PAYLOAD,
    "of no image's type": "data:application/octet-stream;base64," + PAYLOAD,
    "capitals": "DATA:IMAGE/PNG;BASE64," + PAYLOAD,
    "a parameter": "data:image/png;name=a.png;base64," + PAYLOAD,
    "no padding": RED.rstrip("="),
    "URL-safe": RED.partition(",")[0] + "," + PAYLOAD.replace("+", "-").replace("/", "_"),
    "percent-encoded": RED.partition(",")[0]
    + ","
    + PAYLOAD.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    "wrapped over lines": RED[:60] + "\r\n" + RED[60:] + "\n",
}


def image_part(image_url):
    return body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": image_url}]}])


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_image_is_read_from_every_spelling_of_a_data_url(spelling):
    for image_url in (SPELLINGS[spelling], {"url": SPELLINGS[spelling]}):
        request = ChatCompletionRequest.model_validate(image_part(image_url)).request(None)
        assert request.images == (base64.b64decode(PAYLOAD),)


def test_every_detail_is_taken():
    (choices,) = (typing.get_args(kind) for kind in (typing.get_type_hints(ImageURL)["detail"],))
    for detail in (*choices, None):
        assert ChatCompletionRequest.model_validate(image_part({"url": RED, "detail": detail})).request(None).images
    with pytest.raises(ValidationError):
        ChatCompletionRequest.model_validate(image_part({"url": RED, "detail": "huge"}))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data:",
        "data:image/png;base64,",
        "data:image/png," + PAYLOAD,
        "data:image/png;base64,%%%",
        PAYLOAD,
        "a.png",
        RED[:-1] + "é",
    ],
)
def test_what_is_no_image_is_refused_in_a_line(url):
    with pytest.raises(FieldError) as caught:
        ChatCompletionRequest.model_validate(image_part(url)).request(None)
    assert caught.value.field == "messages.0.content.0.image_url" and "\n" not in str(caught.value)


def get(port, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response, text


def test_a_model_is_told_by_its_name_and_an_unknown_one_is_a_404(port):
    client = client_of(port)
    assert client.models.retrieve("tiny").id == "tiny" == client.models.list().data[0].id
    for name in ("other", "owner/other", "tiny/x", "é"):
        with pytest.raises(openai.NotFoundError, match="it is 'tiny'") as caught:
            client.models.retrieve(name)
        assert caught.value.code == "model_not_found"


ORIGIN = "http://localhost:3000"
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


def test_pages_of_another_origin_are_let_in_where_that_is_said(assembled, port):
    response, _ = get(port, "/v1/models", Origin=ORIGIN)
    assert response.getheader("Access-Control-Allow-Origin") is None
    with serving(assembled, cors_origins=(ORIGIN,), api_key="secret") as open_port:
        asked = PREFLIGHT | {"Access-Control-Request-Headers": "authorization, x-stainless-lang"}
        response, _ = get(open_port, "/v1/chat/completions", "OPTIONS", **asked)
        assert response.status == 200 and response.getheader("Access-Control-Allow-Origin") == ORIGIN
        assert "x-stainless-lang" in response.getheader("Access-Control-Allow-Headers")
        response, _ = get(open_port, "/v1/models", Origin=ORIGIN)
        assert response.status == 401 and response.getheader("Access-Control-Allow-Origin") == ORIGIN
        response, text = get(open_port, "/v1/models", Origin=ORIGIN, Authorization="Bearer secret")
        assert json.loads(text)["data"] and response.getheader("Access-Control-Allow-Origin") == ORIGIN
        response, _ = get(open_port, "/v1/models", Origin="http://evil.example")
        assert response.getheader("Access-Control-Allow-Origin") is None


@pytest.mark.parametrize("origin", ["localhost:3000", "http://a/b", "http://", "", "http://a b", "https://a.example/"])
def test_what_is_no_origin_is_said_in_a_line(origin):
    with pytest.raises(UserError, match="give SCHEME://HOST"):
        ServerSettings("tiny", cors_origins=(origin,))
    for good in ("*", "https://a.example", "http://127.0.0.1:3000", "http://[::1]:8000", "app://obsidian.md"):
        ServerSettings("tiny", cors_origins=(good,))
