"""What the package's user calls and no single room can offer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm.contrastive.settings import ContrastiveSettings
from mllm.finetune.settings import FinetuneSettings
from mllm.settings import command_of, expanded, read_values, validate_settings


def train(
    config: str | Path | FinetuneSettings | ContrastiveSettings,
    overrides: Sequence[str] = (),
    stop_after: int | None = None,
) -> Path | None:
    """Train what a YAML file or settings describe: a multimodal LLM, or a dual encoder where `data.pairs` is given.

        final = mllm.train("train/configs/finetune.yaml", ["optim.lr=1e-5"])

    overrides: `a.b=c` each, for a file. Resumes from the run's latest checkpoint. Returns `final/` of the run, or None where
    `stop_after` ended it when that many steps were done. Raises UserError naming file, line and key.
    """
    settings: Any = config
    if isinstance(config, str | Path):
        values = read_values(config, overrides)
        kind = ContrastiveSettings if command_of(values) == "mllm clip train" else FinetuneSettings
        settings = validate_settings(kind, values, expanded(str(config)))
    if isinstance(settings, ContrastiveSettings):
        from mllm.contrastive.run import train_clip

        return train_clip(settings, stop_after)
    from mllm.finetune.run import finetune

    return finetune(settings, stop_after)
