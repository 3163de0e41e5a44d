"""What every backend is asked, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mllm.errors import UserError
from mllm.synthesis.context import Context


@dataclass(frozen=True)
class Prompt:
    """One request: chat messages `{role, content}`, and the facts behind them for a backend that has no use for words.

    `key` is a hash of all that the answer depends on: the same key is never asked twice. `schema` is that of the JSON
    that may be answered instead of blocks. `seed` is the request's own. `wanted` and `unwanted`: objects to speak of that are
    there and that aren't; `sort`: of the mistake in a pair.
    """

    key: str
    kind: str
    messages: tuple[dict[str, str], ...]
    context: Context
    seed: int
    schema: dict[str, Any] | None = None
    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    sort: str = ""


@dataclass(frozen=True)
class Completion:
    """The text of an answer, and the tokens that were paid for."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class RequestFailedError(Exception):
    """One request has no answer after all attempts; `reason` is a short name to count it by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class OutOfBudgetError(UserError):
    """The next request could exceed the budget."""


Answered = Completion | RequestFailedError


class InstructionBackend(Protocol):
    """`complete` is awaited by `concurrency` workers at once, each with at most `batch_size` prompts.

    `identity` is what tells apart the answers of two backends (model, temperature, …); `kinds` and `languages` are
    those that it can write (None: any), `needs_facts` says that it sees no image, `takes_schema`
    that it is asked for JSON.
    """

    concurrency: int
    batch_size: int
    identity: str
    kinds: frozenset[str] | None
    languages: frozenset[str] | None
    needs_facts: bool
    takes_schema: bool

    def spent(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Take into account what earlier runs have paid."""
        ...

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float: ...

    async def complete(self, prompts: Sequence[Prompt]) -> list[Answered]:
        """An answer for each prompt. Raises OutOfBudgetError, and UserError for what no other request would survive."""
        ...

    async def close(self) -> None: ...
