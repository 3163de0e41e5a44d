"""What the package's user calls and no single room can offer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm.contrastive.settings import ContrastiveSettings
from mllm.finetune.settings import FinetuneSettings
from mllm.generation.kinds import read_kind, train_generator
from mllm.generation.settings import GenerationSettings
from mllm.grpo.settings import GrpoSettings
from mllm.preference.settings import PreferenceSettings
from mllm.settings import Settings, command_of, expanded, read_values, validate_settings


def train(
    config: str | Path | FinetuneSettings | ContrastiveSettings | GenerationSettings,
    overrides: Sequence[str] = (),
    stop_after: int | None = None,
) -> Path | None:
    """Train what a YAML file or settings describe: a multimodal LLM, on preference pairs where `preference` is given and by
    what its answers are worth where `rewards` are, a dual encoder where `data.pairs` is, or a generator where `pictures` are.

        final = mllm.train("train/configs/finetune.yaml", ["optim.lr=1e-5"])

    overrides: `a.b=c` each, for a file. Resumes from the run's latest checkpoint. Returns `final/` of the run, or None where
    `stop_after` ended it when that many steps were done. Raises UserError naming file, line and key.
    """
    settings: Any = config
    if isinstance(config, str | Path):
        values = read_values(config, overrides)
        if command_of(values) == "mllm generate train":
            return train(read_kind(values, expanded(str(config))), stop_after=stop_after)
        kind: type[Settings] = PreferenceSettings if "preference" in values else FinetuneSettings
        kind = GrpoSettings if "rewards" in values else kind
        kind = ContrastiveSettings if command_of(values) == "mllm clip train" else kind
        settings = validate_settings(kind, values, expanded(str(config)))
    if isinstance(settings, GenerationSettings):
        return train_generator(settings, stop_after)
    if isinstance(settings, ContrastiveSettings):
        from mllm.contrastive.run import train_clip

        return train_clip(settings, stop_after)
    if isinstance(settings, PreferenceSettings):
        from mllm.preference.run import train_preference

        return train_preference(settings, stop_after)
    if isinstance(settings, GrpoSettings):
        from mllm.grpo.run import learn_from_rewards

        return learn_from_rewards(settings, stop_after)
    from mllm.finetune.run import finetune

    return finetune(settings, stop_after)
