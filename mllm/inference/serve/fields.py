"""Fields of a chat completion that may be sent and that nothing here answers to: only what asks for nothing is taken."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator


class Strict(BaseModel):
    """An object of a request: null is as good as absent, and what isn't declared is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, value: Any) -> Any:
        return _without_null(value)


def _without_null(value: Any) -> Any:
    return {name: own for name, own in value.items() if own is not None} if isinstance(value, dict) else value


def _only(wanted: str, asks_nothing: Callable[[Any], bool]) -> BeforeValidator:
    """A check that a value is one of those that ask for nothing, which `wanted` names."""

    def check(value: Any) -> Any:
        if not asks_nothing(_without_null(value)):
            raise ValueError(f"it isn't served here; leave it out, or send {wanted}")
        return value

    return BeforeValidator(check)


def _one_of(*values: Any) -> BeforeValidator:
    # 0 is no false, and 1 no true.
    return _only(
        " or ".join(repr(v) for v in values), lambda v: any(type(v) is type(own) and v == own for own in values)
    )


def _is_label(value: Any) -> bool:
    return isinstance(value, str)


def _is_labels(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(own, str) for own in value.values())


def _has_no_bias(value: Any) -> bool:
    return isinstance(value, dict) and all(type(own) in (int, float) and own == 0 for own in value.values())


def _is_zero(value: Any) -> bool:
    return type(value) in (int, float) and value == 0


Nothing = Annotated[Any, _only("null", lambda value: False)]
NoList = Annotated[Any, _only("an empty list", lambda value: value == [])]
Label = Annotated[Any, _only("a string", _is_label)]
Zero = Annotated[Any, _only("0", _is_zero)]
Boolean = Annotated[Any, _one_of(True, False)]


class UnservedFields(Strict):
    """OpenAI's fields that the server has no use for. Labels (user, metadata, …) are taken and not looked at."""

    audio: Nothing = None
    frequency_penalty: Zero = None
    function_call: Annotated[Any, _one_of("none", "auto")] = None
    functions: NoList = None
    logit_bias: Annotated[Any, _only("{}", _has_no_bias)] = None
    metadata: Annotated[Any, _only("an object of strings", _is_labels)] = None
    modalities: Annotated[Any, _only("['text']", lambda value: value in ([], ["text"]))] = None
    moderation: Nothing = None
    parallel_tool_calls: Boolean = None
    prediction: Nothing = None
    presence_penalty: Zero = None
    prompt_cache_key: Label = None
    prompt_cache_options: Annotated[Any, _only("{}", lambda value: value in ({}, {"mode": "implicit"}))] = None
    prompt_cache_retention: Annotated[Any, _one_of("in_memory")] = None
    reasoning_effort: Annotated[Any, _one_of("none")] = None
    response_format: Annotated[Any, _only("{'type': 'text'}", lambda value: value == {"type": "text"})] = None
    safety_identifier: Label = None
    service_tier: Annotated[Any, _one_of("auto", "default")] = None
    store: Annotated[Any, _one_of(False)] = None
    # Without tools there is nothing to choose from.
    tool_choice: Annotated[Any, _one_of("none", "auto")] = None
    tools: NoList = None
    user: Label = None
    verbosity: Annotated[Any, _one_of("medium")] = None
    web_search_options: Nothing = None


class UnservedMessageFields(Strict):
    """Fields of a turn that are labels, or that the SDK's own message carries empty."""

    name: Label = None
    annotations: Annotated[Any, _only("a list", lambda value: isinstance(value, list))] = None
    audio: Nothing = None
    function_call: Nothing = None
    tool_calls: NoList = None
