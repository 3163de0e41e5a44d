"""A question as a model under test hears it, its reply, and what a model under test is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.inference.request import Request


@dataclass(frozen=True)
class Question:
    """What an answer depends on beside the model. Equal questions are asked once.

    prompt: the user's words. image: a file, or None. max_new_tokens: the length of a greedy answer at most. options: if
    there are any, the answer is the likeliest of them.
    """

    prompt: str
    image: str | None
    max_new_tokens: int
    options: tuple[str, ...] = ()

    def request(self) -> Request:
        if self.image is None:
            return Request((Message(role="user", content=(TextPart(text=self.prompt),)),))
        return Request((Message(role="user", content=(ImagePart(), TextPart(text=self.prompt))),), (self.image,))


@dataclass(frozen=True)
class Reply:
    """An answer, and its natural log-probability with its ending; None where the model doesn't tell."""

    text: str
    logprob: float | None = None


OnReplies = Callable[[Mapping[Question, Reply]], None]


class Subject(Protocol):
    """A model under test.

    identity: what tells its answers from those of others (weights, dtype, prompt format, …), as JSON; it goes to the
    results, and answers are kept under it.
    """

    identity: Mapping[str, Any]

    def answer(self, questions: Sequence[Question], on_replies: OnReplies) -> None:
        """Answer each question, handing out replies as they come. Raises UserError where one can't be asked."""
        ...
