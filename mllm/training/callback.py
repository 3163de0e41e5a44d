"""The protocol of side concerns (logging, saving, evaluating): called by the loop, with state that is saved with the run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.finetune.settings import FinetuneSettings
from mllm.model.multimodal import MultimodalLM
from mllm.processor import Processor
from mllm.training.engine import Engine


class Callback:
    """Override what you need; `state` and `restore` travel in the checkpoint.

    All hooks run on every rank that has the callback. One that measures has to be on all of them, in the same order.
    """

    measures: tuple[str, ...] = ()  # names of the numbers that `measure` may give

    def on_start(self, step: int, total_steps: int) -> None: ...
    def measure(self, step: int) -> Mapping[str, float | str]:
        """Metrics of the model after `step` steps, for the others to see; a string is Markdown to be shown."""
        return {}

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None: ...
    def on_end(self, step: int) -> None: ...
    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class RunContext:
    """What a callback may want of the run that it belongs to."""

    settings: FinetuneSettings
    run_dir: Path
    model: MultimodalLM
    processor: Processor
    engine: Engine


CallbackFactory = Callable[[RunContext], Sequence[Callback]]
