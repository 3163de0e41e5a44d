"""Settings of a run that asks a backend for instructions about images with known facts."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mllm.clients.openai import MaxTokensName
from mllm.settings import ExpandedPath, PathText, Settings

Kind = Literal["conversation", "detail", "reasoning", "short_vqa", "ocr", "grounding", "spatial", "absent"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TemplateSettings(Settings):
    """No model: English sentences made of the facts; reasoning it can't write."""

    kind: Literal["template"]


class OpenAISettings(Settings):
    """An endpoint that speaks OpenAI's chat completions (OpenAI, vLLM, Ollama, `mllm serve`, …).

    api_key_env: the environment variable that holds the key; sends_image: the image goes with the facts, as JPEG of at most
    image_size_px; structured_output: ask for a JSON schema (`auto`: until the server refuses it).
    temperature: null isn't sent (newer models of OpenAI refuse any but their own); max_tokens_name: what the server calls
    the limit of an answer's tokens, of those that a model spends on reasoning too.
    concurrency, requests_per_minute, tokens_per_minute: what the server allows; timeout_s: of one attempt; attempts: of one
    request, with waits of backoff_s · 2ⁿ (jittered) or what the server says, at most backoff_max_s.
    price_prompt, price_completion: per million tokens; budget: in the same currency, budget_tokens: prompt and completion
    together; no request is sent that could exceed them, answers of earlier runs into the same output included.
    """

    kind: Literal["openai"]
    model: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    sends_image: bool = False
    image_size_px: int = Field(default=768, ge=16)
    temperature: Annotated[float, Field(ge=0)] | None = 0.7
    max_tokens: int = Field(default=1024, ge=1)
    max_tokens_name: MaxTokensName = "max_tokens"
    structured_output: Literal["auto", "off"] = "auto"
    concurrency: int = Field(default=32, ge=1, le=1000)
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    timeout_s: Positive = 120.0
    attempts: int = Field(default=8, ge=1)
    backoff_s: Positive = 1.0
    backoff_max_s: Positive = 60.0
    price_prompt: float = Field(default=0.0, ge=0)
    price_completion: float = Field(default=0.0, ge=0)
    budget: Positive | None = None
    budget_tokens: Annotated[int, Field(gt=0)] | None = None


class LocalSettings(Settings):
    """A transformers language model on this machine, `batch_size` prompts at a time. temperature 0 is greedy."""

    kind: Literal["local"]
    model: PathText
    device: str = "auto"
    batch_size: int = Field(default=8, ge=1)
    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)


BackendSettings = Annotated[TemplateSettings | OpenAISettings | LocalSettings, Field(discriminator="kind")]


class InputSettings(Settings):
    """A file of images with facts, in any container that data readers know; see docs/synthesis.md for its fields."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    path: PathText
    image_root: PathText = "."


class EvaluationSettings(Settings):
    """Samples that must not be trained on: their images, and their questions word for word."""

    path: PathText
    reader: str = "messages"
    image_root: PathText = "."


class FilterSettings(Settings):
    """What is refused. skip: names of filters that aren't applied.

    image_distance: bits (of 64) in which the perceptual hashes of one picture may differ; near_duplicate_similarity:
    Jaccard similarity of word triples from which a long text is a copy; words: fewest and most words of an answer, for
    kinds where the defaults don't suit; question_words: questions shorter than this may be in an evaluation set too.
    """

    skip: tuple[str, ...] = ()
    image_distance: int = Field(default=4, ge=0, le=16)
    near_duplicate_similarity: float = Field(default=0.8, gt=0, le=1)
    words: dict[Kind, tuple[int, int]] = Field(default={})
    question_words: int = Field(default=6, ge=1)
    evaluation: tuple[EvaluationSettings, ...] = ()


class JudgeSettings(Settings):
    """A model that scores each sample from 1 to 5 against the facts; those below min_score are refused."""

    backend: BackendSettings
    min_score: int = Field(default=3, ge=1, le=5)


class InstructionConfig(Settings):
    """A whole run. kinds and languages (ISO 639-1 codes): relative frequencies; requests_per_image: asked of each image.

    prompts: a directory with a folder for each kind; limit: use only the first images.
    """

    output: ExpandedPath
    seed: int = 0
    backend: BackendSettings
    inputs: tuple[InputSettings, ...] = Field(min_length=1)
    kinds: dict[Kind, Positive] = Field(min_length=1)
    languages: dict[str, Positive] = Field(default={"en": 1.0}, min_length=1)
    requests_per_image: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=1)
    prompts: ExpandedPath = Path("data_recipes/prompts")
    filters: FilterSettings = FilterSettings()
    judge: JudgeSettings | None = None

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "InstructionConfig":
        names = [source.name for source in self.inputs]
        if len(set(names)) < len(names) or "rejected" in names:
            raise ValueError(
                "each input needs a name of its own, other than `rejected`: its samples are written under it"
            )
        return self
