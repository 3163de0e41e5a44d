"""Requests: the facts of an image, the folder of prompts of a kind, and a language become chat messages.

A folder `data_recipes/prompts/KIND` holds `system.txt`, few-shot pairs `1_facts.txt` / `1_answer.txt`, `2_…`, and perhaps
`questions.LANGUAGE.txt`, from which the question of a single answer is drawn.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mllm.errors import UserError
from mllm.resources import shipped_unless_there
from mllm.synthesis.backends.base import InstructionBackend, Prompt
from mllm.synthesis.context import Context
from mllm.synthesis.naming import Objects, load_objects
from mllm.synthesis.parsing import SCHEMA, Turns, as_blocks, as_json, parse_turns
from mllm.synthesis.preferences import FOLDERS, Options
from mllm.synthesis.preferences import KIND as PREFERENCE
from mllm.synthesis.settings import InstructionConfig

LANGUAGES = {
    "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "sw": "Swahili",
    "ta": "Tamil", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
BLOCK_FORMAT = (
    "Write each turn as two blocks, `Question:` and `Answer:`, with a line `===` between all blocks, and nothing else."
)
JSON_FORMAT = 'Write JSON: {"turns": [{"question": "…", "answer": "…"}]}, and nothing else.'
NEEDED = {"ocr": "ocr"} | dict.fromkeys(("grounding", "spatial", "grounded_caption", "region_text"), "boxes")


@dataclass(frozen=True)
class KindPrompts:
    """The texts of one kind; `examples` are (facts, turns), `questions` by language."""

    system: str
    examples: tuple[tuple[str, Turns], ...]
    questions: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Request:
    """A prompt and what its answer is to become. `number` counts the requests of one image."""

    prompt: Prompt
    kind: str
    language: str
    number: int
    question: str | None

    @property
    def id(self) -> str:
        context = self.prompt.context
        return f"{context.source}-{context.id}-{self.kind}-{self.language}-{self.number}"


def load_kind(root: Path, kind: str) -> KindPrompts:
    """The prompts of a kind in `root`, or the shipped ones where it has none.

    Raises UserError when a file is missing or an example isn't in the form that is asked for.
    """
    folder = shipped_unless_there("prompts", root, kind)
    system = folder / "system.txt"
    if not system.is_file():
        raise UserError(f"{system} does not exist; each kind needs a folder of prompts (`prompts` in the config)")
    examples = []
    for facts in sorted(folder.glob("*_facts.txt")):
        answer = facts.with_name(facts.name.replace("_facts", "_answer"))
        try:
            examples.append(
                (facts.read_text(encoding="utf-8").strip(), parse_turns(answer.read_text(encoding="utf-8")))
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{answer}: {error}") from None
    questions = {
        path.suffixes[0][1:]: tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        for path in folder.glob("questions.*.txt")
    }
    return KindPrompts(system.read_text(encoding="utf-8").strip(), tuple(examples), questions)


@dataclass
class Requests:
    """All requests about a context, a pure function of the settings, the prompt files and the context."""

    config: InstructionConfig
    backend: InstructionBackend
    _kinds: dict[str, KindPrompts] = field(init=False)
    _objects: Objects = field(init=False)

    def __post_init__(self) -> None:
        config, backend = self.config, self.backend
        unknown = [code for code in config.languages if code not in LANGUAGES]
        if unknown:
            raise UserError(f"languages: unknown code {unknown[0]!r}; choose among {', '.join(LANGUAGES)}")
        for what, asked, possible in (
            ("kinds", config.kinds, backend.kinds),
            ("languages", config.languages, backend.languages),
        ):
            refused = [name for name in asked if possible is not None and name not in possible]
            if refused and possible:
                raise UserError(
                    f"{what}: backend {config.backend.kind} can't write {refused[0]}; it can {', '.join(sorted(possible))}"
                )
        folders: list[str] = [kind for kind in config.kinds if kind != PREFERENCE]
        folders += FOLDERS.values() if PREFERENCE in config.kinds else []
        self._kinds = {kind: load_kind(config.prompts, kind) for kind in folders}
        self._objects = load_objects(config.prompts)

    def about(self, context: Context) -> Iterator[Request]:
        """requests_per_image requests, of kinds that the facts suffice for; none where they suffice for no kind."""
        config = self.config
        options = Options(context, self._objects, by_template=self.backend.kinds is not None)
        kinds = {kind: weight for kind, weight in config.kinds.items() if self._is_possible(kind, options)}
        rng = seeded_random(config.seed, context.source, context.id, "requests")
        for number in range(config.requests_per_image if kinds else 0):
            kind = rng.choices(list(kinds), list(kinds.values()))[0]
            language = rng.choices(list(config.languages), list(config.languages.values()))[0]
            yield self._request(options, kind, language, number, random.Random(rng.getrandbits(64)))

    def _is_possible(self, kind: str, options: Options) -> bool:
        needed = NEEDED.get(kind)
        if kind == PREFERENCE:
            return bool(options.sorts)
        if kind == "absent":
            return bool(options.present and options.absent)
        # Boxes can't be seen; words can, by a model that is sent the image.
        if needed == "boxes" or (needed and self.backend.needs_facts):
            return bool(getattr(options.context, needed))
        return True

    def _request(self, options: Options, kind: str, language: str, number: int, rng: random.Random) -> Request:
        context = options.context
        wanted: tuple[str, ...] = ()
        unwanted: tuple[str, ...] = ()
        facts = fact_lines(context)
        folder, sort = kind, ""
        if kind == PREFERENCE:
            asked = options.draw(rng)
            wanted, unwanted, sort, folder = asked.present, asked.absent, asked.sort, asked.folder
            facts += asked.lines(context)
        prompts = self._kinds[folder]
        if kind == "absent":
            wanted, unwanted = (rng.choice(options.present),), (rng.choice(options.absent),)
            facts += (
                f"\nAsk about, to be answered with yes: {wanted[0]}\nAsk about, to be answered with no: {unwanted[0]}"
            )
        questions = prompts.questions.get(language)
        written = as_json if self.backend.takes_schema else as_blocks
        form = JSON_FORMAT if self.backend.takes_schema else BLOCK_FORMAT
        system = f"{prompts.system}\n{form}\nLanguage of questions and answers: {LANGUAGES[language]}."
        messages = [{"role": "system", "content": system}]
        for example, turns in prompts.examples:
            messages += [{"role": "user", "content": example}, {"role": "assistant", "content": written(turns)}]
        messages.append({"role": "user", "content": facts})
        seed = rng.getrandbits(31)
        prompt = Prompt(
            prompt_key(self.backend.identity, seed, context.source, context.image, messages),
            kind,
            tuple(messages),
            context,
            seed,
            SCHEMA if self.backend.takes_schema else None,
            wanted,
            unwanted,
            sort,
        )
        return Request(prompt, kind, language, number, rng.choice(questions) if questions else None)


def prompt_key(*parts: object) -> str:
    """A hash of what an answer depends on."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]


def fact_lines(context: Context) -> str:
    """The facts, a line each."""
    lines = list(context.captions)
    if context.size_px is not None:
        lines += [f"{box.category}: {box.place(context.size_px)}" for box in context.boxes]
    lines += [f"Text in the image: {text}" for text in context.ocr]
    lines += [f"Alternative text: {context.alt}"] if context.alt else []
    return "\n".join(lines)


def seeded_random(seed: int, *key: object) -> random.Random:
    """A generator that depends on `seed` and `key` alone, whatever else has been drawn."""
    # A string seed goes through SHA-512, unlike hash(), which differs from process to process.
    return random.Random(":".join(str(part) for part in (seed, *key)))
