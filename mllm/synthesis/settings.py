"""Settings of a run that asks a backend for instructions about images with known facts."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mllm.clients.openai import MaxTokensName
from mllm.settings import ExpandedPath, PathText, Settings

Kind = Literal[
    "conversation",
    "detail",
    "reasoning",
    "short_vqa",
    "ocr",
    "grounding",
    "spatial",
    "grounded_caption",
    "region_text",
    "absent",
    "preference",
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TemplateSettings(Settings):
    """A backend without a model: English sentences made of the facts; it can't write reasoning."""

    kind: Literal["template"]
    """The kind of backend: `template`."""


class OpenAISettings(Settings):
    """An endpoint that speaks OpenAI's chat completions (OpenAI, vLLM, Ollama, `mllm serve`, …)."""

    kind: Literal["openai"]
    """The kind of backend: `openai`."""
    model: str
    """Name of the model, as the server knows it."""
    base_url: str | None = None
    """Address of the server, such as http://127.0.0.1:8000/v1. OpenAI's own by default."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. OPENAI_API_KEY by default."""
    sends_image: bool = False
    """Whether the image is sent with the facts, as JPEG. False by default."""
    image_size_px: int = Field(default=768, ge=16)
    """Longer side of an image that is sent, in pixels, at most. 768 by default."""
    temperature: Annotated[float, Field(ge=0)] | None = 0.7
    """Temperature of sampling; null leaves it out, for models that refuse any but their own. 0.7 by default."""
    max_tokens: int = Field(default=1024, ge=1)
    """Number of tokens of an answer at most, of those that a model spends on reasoning, too. 1024 by default."""
    max_tokens_name: MaxTokensName = "max_tokens"
    """What the server calls that limit: `max_tokens` (the default) or `max_completion_tokens`, as newer models of
    OpenAI want it.
    """
    structured_output: Literal["auto", "off"] = "auto"
    """Whether answers are asked for by a JSON schema: `auto` (the default) does until the server refuses it, `off`
    never does.
    """
    concurrency: int = Field(default=32, ge=1, le=1000)
    """Number of requests under way at a time. 32 by default."""
    requests_per_minute: Positive | None = None
    """Number of requests that the server allows in a minute. None, the default, sets no limit."""
    tokens_per_minute: Positive | None = None
    """Number of tokens that the server allows in a minute. None, the default, sets no limit."""
    timeout_s: Positive = 120.0
    """Seconds that one attempt may take. 120 by default."""
    attempts: int = Field(default=8, ge=1)
    """Number of attempts of a request. 8 by default."""
    backoff_s: Positive = 1.0
    """Seconds of the first wait before another attempt; each wait is twice the one before, give or take, or what the
    server says. 1 by default.
    """
    backoff_max_s: Positive = 60.0
    """Seconds of such a wait at most. 60 by default."""
    price_prompt: float = Field(default=0.0, ge=0)
    """Price of a million tokens of prompts, in any currency. 0 by default."""
    price_completion: float = Field(default=0.0, ge=0)
    """Price of a million tokens of answers, in the same currency. 0 by default."""
    budget: Positive | None = None
    """What the run may cost, in the same currency, answers of earlier runs into the same output included; no request
    is sent that could exceed it. None, the default, sets no limit.
    """
    budget_tokens: Annotated[int, Field(gt=0)] | None = None
    """Number of tokens, of prompts and answers together, that the run may use, counted as `budget`. None, the default,
    sets no limit.
    """


class LocalSettings(Settings):
    """A language model of transformers on this machine."""

    kind: Literal["local"]
    """The kind of backend: `local`."""
    model: PathText
    """A directory or hub id of a causal language model."""
    device: str = "auto"
    """Where it runs, such as `cpu` or `cuda:0`. `auto`, the default, is a GPU if there is one."""
    batch_size: int = Field(default=8, ge=1)
    """Number of prompts that are answered together. 8 by default."""
    max_tokens: int = Field(default=512, ge=1)
    """Number of tokens of an answer at most. 512 by default."""
    temperature: float = Field(default=0.0, ge=0)
    """Temperature of sampling; 0, the default, always takes the likeliest token."""


BackendSettings = Annotated[TemplateSettings | OpenAISettings | LocalSettings, Field(discriminator="kind")]


class InputSettings(Settings):
    """A file of images with facts."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    """Name of the input; its samples are written to NAME.jsonl."""
    path: PathText
    """A file of images with facts, in any container that data readers know; `docs/how-to/make_data.md` tells its fields."""
    image_root: PathText = "."
    """Directory that image paths start from. The working directory by default."""


class EvaluationSettings(Settings):
    """Samples that must not be trained on: their images, and their questions word for word."""

    path: PathText
    """A file of samples, or a pattern."""
    reader: str = "messages"
    """What the records of the file mean. `messages` by default."""
    image_root: PathText = "."
    """Directory that image paths start from. The working directory by default."""


class FilterSettings(Settings):
    """What is refused."""

    skip: tuple[str, ...] = ()
    """Names of filters that aren't applied. None by default."""
    image_distance: int = Field(default=4, ge=0, le=16)
    """Number of bits, of 64, in which the perceptual hashes of one picture may differ. 4 by default."""
    near_duplicate_similarity: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word triples, from 0 to 1, from which a long text is a copy. 0.8 by default."""
    words: dict[Kind, tuple[int, int]] = Field(default={})
    """Fewest and most words of an answer, for kinds whose defaults don't suit. Empty by default."""
    question_words: int = Field(default=6, ge=1)
    """Number of words below which a question may be in an evaluation set, too. 6 by default."""
    evaluation: tuple[EvaluationSettings, ...] = ()
    """Samples that must not be trained on. None by default."""
    max_length_ratio: float = Field(default=1.3, ge=1)
    """How many times as many words as the other one an answer of a pair may have. 1.3 by default."""
    min_margin: float = Field(default=2.0, ge=0)
    """Difference of a critic's scores, of 1 to 10, from which two answers are a pair. 2 by default."""


class DamageSettings(Settings):
    """Pairs of a right answer about an image and the same about the image damaged."""

    share: float = Field(default=0.0, ge=0, le=1)
    """Share of the pairs that become such, from 0 to 1. 0 by default."""
    kinds: tuple[Literal["crop", "noise"], ...] = Field(default=("crop", "noise"), min_length=1)
    """What is done to the images: `crop` keeps at most a fifth of the area, `noise` leaves little but noise. Both by
    default, each as likely.
    """
    folder: str = Field(default="damaged", pattern=r"^[A-Za-z0-9][\w-]*$")
    """Name of the folder in the image root that damaged images are written to. `damaged` by default."""


class JudgeSettings(Settings):
    """A model that scores each sample from 1 to 5 against the facts."""

    backend: BackendSettings
    """Who judges."""
    min_score: int = Field(default=3, ge=1, le=5)
    """Score below which a sample is refused, from 1 to 5. 3 by default."""


class InstructionConfig(Settings):
    """Everything that `mllm synth` reads."""

    output: ExpandedPath
    """Directory for the samples, a recipe of them, and the report. A run that was stopped goes on from it."""
    seed: int = 0
    """Seed of which kinds and languages are asked of which image. 0 by default."""
    backend: BackendSettings
    """Who writes the samples: a template, an endpoint, or a language model on this machine."""
    inputs: tuple[InputSettings, ...] = Field(min_length=1)
    """Files of images with facts."""
    kinds: dict[Kind, Positive] = Field(min_length=1)
    """Relative frequencies of the kinds of samples."""
    languages: dict[str, Positive] = Field(default={"en": 1.0}, min_length=1)
    """Relative frequencies of languages, by ISO 639-1 codes. English alone by default."""
    requests_per_image: int = Field(default=1, ge=1)
    """Number of requests about each image. 1 by default."""
    limit: int | None = Field(default=None, ge=1)
    """Number of images that are used, the first. None, the default, uses all."""
    prompts: ExpandedPath = Path("data_recipes/prompts")
    """A directory with a folder of prompts for each kind. Ours by default."""
    filters: FilterSettings = FilterSettings()
    """Which samples are refused."""
    judge: JudgeSettings | None = None
    """A model that scores the samples. None by default."""
    damage: DamageSettings = DamageSettings()
    """Which pairs are about a damaged image. None by default."""

    @property
    def writes_pairs(self) -> bool:
        """Whether the samples are preference pairs."""
        return "preference" in self.kinds

    @model_validator(mode="after")
    def _pairs_stand_alone(self) -> "InstructionConfig":
        if self.writes_pairs and len(self.kinds) > 1:
            raise ValueError(
                "kind `preference` writes pairs, which don't go into one file with samples: ask for it alone"
            )
        if self.damage.share and not self.writes_pairs:
            raise ValueError("damage.share is of pairs: ask for kind `preference`")
        return self

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "InstructionConfig":
        names = [source.name for source in self.inputs]
        if len(set(names)) < len(names) or "rejected" in names:
            raise ValueError(
                "each input needs a name of its own, other than `rejected`: its samples are written under it"
            )
        return self
