"""A name → thing table that matches names exactly, refuses duplicates and lists the choices when it misses."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from mllm.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of the implementations of one `kind` (for error messages: "projector", "benchmark", …)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters its argument under `name`. Raises ValueError when the name is taken."""

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str) -> T:
        """The entry called exactly `name`. Raises UserError that lists the choices."""
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} {name!r}; choose one of: {', '.join(sorted(self._entries))}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
