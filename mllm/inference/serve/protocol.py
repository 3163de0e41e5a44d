"""OpenAI's chat completions as far as they are served: what is asked, checked, and the answers' shapes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mllm.conversation.schema import ImagePart, Message, Part, TextPart, VideoPart
from mllm.errors import UserError
from mllm.inference.answer import Answer, TokenLogprob
from mllm.inference.confidence import Said
from mllm.inference.decoding import Decoding
from mllm.inference.places import Places
from mllm.inference.request import Request
from mllm.inference.serve.fields import Strict, UnservedFields, UnservedMessageFields
from mllm.media.clip import ClipLimits, read_clip
from mllm.media.decode import DecodeLimits, read_image
from mllm.media.ref import ImageSource
from mllm.media.remote import data_url_bytes, is_url

IMAGE_LIMITS = DecodeLimits(max_bytes=20 * 2**20, max_pixels=50_000_000, max_frames=200)
VIDEO_LIMITS = ClipLimits(max_bytes=40 * 2**20, max_seconds=3600.0, max_frames=250_000, max_pixels=8_500_000)
MAX_IMAGES = 16  # videos among them
FINISH_REASONS = {"stop": "stop", "length": "length", "cancelled": "length"}


class FieldError(UserError):
    """A request that can't be served, and the field that is to blame."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class _ImageUrl(Strict):
    """`detail` is taken and not looked at: an image has as many tokens as the model gives it."""

    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class _TextContent(Strict):
    type: Literal["text"]
    text: str


class _RefusalContent(Strict):
    type: Literal["refusal"]
    refusal: str


class _ImageContent(Strict):
    type: Literal["image_url"]
    image_url: _ImageUrl

    @field_validator("image_url", mode="before")
    @classmethod
    def _string_is_the_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class _VideoUrl(Strict):
    url: str


class _VideoContent(Strict):
    """Not of OpenAI's API: as other servers of open models take videos."""

    type: Literal["video_url"]
    video_url: _VideoUrl

    @field_validator("video_url", mode="before")
    @classmethod
    def _string_is_the_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class _ChatMessage(UnservedMessageFields):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[
        Annotated[_TextContent | _RefusalContent | _ImageContent | _VideoContent, Field(discriminator="type")]
    ]
    refusal: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _string_is_one_text_part(cls, value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _an_answer_may_be_without_content(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("role") == "assistant" and value.get("content") is None:
            return value | {"content": value.get("refusal") or ""}
        return value

    @field_validator("refusal")
    @classmethod
    def _of_an_answer(cls, value: str, others: ValidationInfo) -> str:
        if others.data.get("role") not in ("assistant", None):
            raise ValueError("only an assistant's turn has one")
        return value


class _StreamOptions(Strict):
    """`include_obfuscation` pads chunks against listeners; what is served isn't padded."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatCompletionRequest(UnservedFields):
    """The body of `POST /v1/chat/completions`; a field that is unknown or asks for what isn't served is refused by name."""

    model: str
    messages: list[_ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: int = Field(default=1, ge=1, le=16)
    stop: list[str] = Field(default=[], max_length=4)
    stream: bool = False
    stream_options: _StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if not all(value):
            raise ValueError("a stop string can't be empty")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, value: int, others: ValidationInfo) -> int:
        if value and not others.data.get("logprobs"):
            raise ValueError("goes with logprobs: true")
        return value

    def decoding(self, default_max_new_tokens: int) -> Decoding:
        """How the answers are written."""
        return Decoding(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or default_max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=tuple(self.stop),
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
        )

    def request(self, fetch: Callable[[str], bytes] | None) -> Request:
        """The conversation with its images, decoded once to know that they can be, and its videos. Raises FieldError.

        fetch: gets the bytes behind an image's URL; None where remote images are off.
        """
        messages: list[Message] = []
        images: list[ImageSource] = []
        for number, message in enumerate(self.messages):
            parts: list[Part] = []
            for place, part in enumerate(message.content):
                where = f"messages.{number}.content.{place}"
                if isinstance(part, _ImageContent):
                    parts.append(ImagePart())
                    images.append(_image(part.image_url.url, f"{where}.image_url", fetch))
                elif isinstance(part, _VideoContent):
                    parts.append(VideoPart())
                    images.append(_video(part.video_url.url, f"{where}.video_url"))
                else:
                    parts.append(TextPart(text=part.text if isinstance(part, _TextContent) else part.refusal))
            role = "system" if message.role == "developer" else message.role
            messages.append(Message(role=role, content=tuple(parts)))
        if len(images) > MAX_IMAGES:
            raise FieldError("messages", f"{len(images)} images and videos; at most {MAX_IMAGES} are taken")
        request = Request(tuple(messages), tuple(images))
        try:
            request.check()
        except UserError as error:
            raise FieldError("messages", str(error)) from None
        if not messages[-1].text.strip() and not messages[-1].image_count:
            raise FieldError("messages", "the question is empty")
        return request


def _image(url: str, field: str, fetch: Callable[[str], bytes] | None) -> bytes:
    try:
        data = _image_bytes(url, fetch)
        read_image(data, IMAGE_LIMITS)
    except UserError as error:
        raise FieldError(field, str(error)) from None
    return data


def _video(url: str, field: str) -> bytes:
    try:
        data = data_url_bytes(url, VIDEO_LIMITS.max_bytes, "video")
        read_clip(data, VIDEO_LIMITS)
    except UserError as error:
        raise FieldError(field, str(error)) from None
    return data


def _image_bytes(url: str, fetch: Callable[[str], bytes] | None) -> bytes:
    if is_url(url):
        if fetch is None:
            raise UserError("remote images are off on this server; send the image as a data URL")
        return fetch(url)
    return data_url_bytes(url, IMAGE_LIMITS.max_bytes)


def usage(answers: list[Answer]) -> dict[str, int]:
    """Token counts of one request; the prompt counts once."""
    prompt, written = answers[0].prompt_token_count, sum(len(answer.token_ids) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def logprobs_of(tokens: tuple[TokenLogprob, ...] | list[TokenLogprob], tokenizer: Any) -> dict[str, Any]:
    """Log-probabilities in OpenAI's shape."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token_id])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}

    return {
        "content": [
            entry(t.token_id, t.logprob) | {"top_logprobs": [entry(token_id, value) for token_id, value in t.top]}
            for t in tokens
        ]
    }


def completion(
    identity: dict[str, Any],
    answers: list[Answer],
    with_logprobs: bool,
    tokenizer: Any,
    places: Sequence[Places | None],
    said: Sequence[Said],
) -> dict[str, Any]:
    """A whole `chat.completion`. identity: its id, model and time. places: what each answer names in an image. said: what the
    client hears of each."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": told.text} | confidence_fields(told) | places_field(own),
            "logprobs": logprobs_of(answer.logprobs, tokenizer) if with_logprobs and not told.abstained else None,
            "finish_reason": FINISH_REASONS[answer.finish_reason],
        }
        for index, (answer, own, told) in enumerate(zip(answers, places, said, strict=True))
    ]
    return identity | {"object": "chat.completion", "choices": choices, "usage": usage(answers)}


def places_field(places: Places | None) -> dict[str, Any]:
    """What OpenAI's API doesn't have: `places` of an answer, in shares of the image that was shown last; {} without any."""
    return {} if places is None else {"places": places.as_records()}


def confidence_fields(said: Said) -> dict[str, Any]:
    """What OpenAI's API doesn't have: how sure an answer is, and whether other words stand for it; {} if unknown."""
    return {} if said.confidence is None else {"confidence": round(said.confidence, 4), "abstained": said.abstained}


def chunk(
    identity: dict[str, Any],
    index: int,
    delta: Mapping[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish: str | None = None,
) -> dict[str, Any]:
    """A `chat.completion.chunk` with one choice."""
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return identity | {"object": "chat.completion.chunk", "choices": [choice]}
