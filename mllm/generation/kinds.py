"""The kinds of generators that can be trained: which settings a config has, and which run it becomes."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from mllm.errors import UserError
from mllm.generation.extra import check_diffusers
from mllm.generation.settings import GenerationSettings
from mllm.settings import validate_settings


class Kind(NamedTuple):
    """Where the class of settings and the function that trains by them are, as `module:name`."""

    settings: str
    run: str


KINDS = {
    "text": Kind("mllm.generation.settings:DiffusionSettings", "mllm.generation.run:train_diffusion"),
    "autoencoder": Kind(
        "mllm.generation.settings:AutoencoderSettings", "mllm.generation.autoencoder:train_autoencoder"
    ),
    "prior": Kind("mllm.generation.unclip_settings:PriorSettings", "mllm.generation.unclip_runs:train_prior"),
    "decoder": Kind("mllm.generation.unclip_settings:DecoderSettings", "mllm.generation.unclip_runs:train_decoder"),
    "retrieval": Kind(
        "mllm.generation.unclip_settings:RetrievalSettings", "mllm.generation.unclip_runs:train_retrieval"
    ),
}


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def read_kind(values: dict[str, Any], origin: str) -> GenerationSettings:
    """Validate a config by its kind, `text` where it names none. Raises UserError for an unknown one."""
    kind = values.get("kind", "text")
    if kind not in KINDS:
        raise UserError(f"{origin}: unknown kind {kind!r}; there are {', '.join(KINDS)}")
    return validate_settings(_named(KINDS[kind].settings), values, origin)


def train_generator(settings: GenerationSettings, stop_after: int | None = None) -> Path | None:
    """Train what the settings say; returns `final/` of the run, or None where `stop_after` steps came before its end."""
    check_diffusers()
    return _named(KINDS[settings.kind].run)(settings, stop_after)
