"""A user's own questions as a benchmark: a file of JSON lines, or a YAML file that says how to read and score one."""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mllm.data.readers.errors import BadRecordError, raise_error
from mllm.data.readers.json_lines import read_json
from mllm.data.readers.messages import message_samples
from mllm.data.readers.records import read_records
from mllm.errors import UserError
from mllm.evaluation.benchmark import Benchmark, Card, Item, MajorityAnswer
from mllm.evaluation.medium import Medium
from mllm.evaluation.metric import METRICS, Line, Result
from mllm.evaluation.release import first_problem
from mllm.settings import ExpandedPath, Settings, load_settings

DEFAULT_METRIC = "exact_match"
PACKAGE = "package:"
YAML = (".yaml", ".yml")
# Where others keep the image or the video; a question asked without it would be asked blind.
OTHER_IMAGE_KEYS = ("image_path", "image_file", "img", "img_path", "picture", "file_name")
OTHER_VIDEO_KEYS = ("videos", "video_path", "video_file", "video_url")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _said(value: Any) -> Any:
    """The answer as it is, unless it is none at all."""
    if isinstance(value, str):
        return _not_blank(value)
    if value is None or isinstance(value, bool) or value in ([], {}):
        raise ValueError(f"{json.dumps(value)} is no answer; expected text or a number")
    return value


Words = Annotated[str, AfterValidator(_not_blank)]


class _Question(BaseModel):
    """Further fields go to the metric."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: Annotated[Words, BeforeValidator(lambda v: str(v) if type(v) is int else v)] | None = None
    image: Words | None = None
    images: list[Words] = []
    video: Words | None = None
    question: Words
    references: Annotated[list[Annotated[Any, AfterValidator(_said)]], BeforeValidator(_one_or_more)] = Field(
        validation_alias=AliasChoices("references", "answers", "answer"), min_length=1
    )
    type: str = "all"
    options: list[str | int | float] | dict[str, str] | None = None


class QuestionFile(Settings):
    """How a file of questions is read, asked and scored: `--benchmarks FILE.yaml`.

    `id`, `image` and `video` are texts with columns in braces, such as `{number}.png`; `{index}` counts the rows from 0.
    """

    file: str
    """The questions: JSON lines, a JSON list, CSV or Parquet, in the folder."""
    description: str = "your own questions"
    """What is asked, in a few words."""
    source: str = "write it, or name its directory with --data"
    """How to get the files, for the error where they aren't there."""
    data: ExpandedPath | None = None
    """The directory that holds the folder unless `--data` says another (default: always the directory of this file)."""
    folder: tuple[str, ...] = (".",)
    """The folder within the directory, or several of which the first that exists counts; `package:NAME/FOLDER` lies in an
    installed package."""
    columns: tuple[str, ...] | None = None
    """Names for the values of a row that is a list (default: rows are objects)."""
    id: str | None = None
    """The question's id (default: its column `id`, or the row's number from 1)."""
    image: str | None = None
    """The image's file (default: its column `image`)."""
    video: str | None = None
    """The video's file, or the folder of its frames (default: its column `video`); it is shown behind the image."""
    image_root: str = "."
    """Where images and videos lie, in the folder."""
    types: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """The answers of each type of question (default: the column `type`, or one type, `all`)."""
    prompt: str = Field(default="{question}", pattern=r"\{question\}")
    """The user's words, with `{question}` for the question."""
    metric: str = DEFAULT_METRIC
    """The metric's name; `mllm score` takes the same."""
    metric_settings: Mapping[str, str] = Field(default_factory=dict)
    """The metric's settings, such as `synonyms` of object_hallucination (default: none)."""
    choice_by: Literal["generation", "likelihood"] = "generation"
    """How a question with options is answered: `generation`, in words unless `--choice-by` says otherwise, or always by
    `likelihood`, which takes the option that is the likeliest answer."""
    answers_with_places: bool = False
    """Whether `iou` or `pointing` reads a model's answers in its own box format, over the image, and each is right or wrong
    (`iou`: at 0.5); questions have boxes in pixels, and `width` and `height` (default: false, any text that names a box)."""
    mirrors: bool = False
    """Whether the condition `mirrored` may exchange left and right in questions, options and answers: the words mean sides,
    and nothing in an image has to be read (default: false, the condition is refused)."""
    max_new_tokens: int = Field(default=64, ge=1)
    """The length of an answer at most, in tokens."""
    limit: int | None = Field(default=None, ge=1)
    """How many questions are asked unless `--limit` says (default: all)."""
    majority: str | None = None
    """Training samples or questions, in the folder: their commonest answers are a control (default: none)."""


class UserFile(Benchmark):
    """`FILE.jsonl`, `FILE.jsonl:METRIC` or `FILE.yaml` (see `QuestionFile`).

    A line has question, answer(s), and if it has them, image or several images, and a video (beside the file).
    """

    card = Card(
        title="your own questions",
        questions="one a line",
        files=("{id, image or images, video, question, answer or references, type, fields of the metric}",),
        source="you",
        size="yours",
        licence="yours",
        protocol="the question verbatim; FILE.jsonl:METRIC names a metric other than exact_match",
    )

    max_new_tokens = 64

    def __init__(self, name: str) -> None:
        """Raises UserError for settings that don't fit, and a metric that is unknown or doesn't score answers in words."""
        if name.endswith(YAML):
            self._home = Path(name).parent
            self.settings = load_settings(QuestionFile, name)
            self.default_data: Path | None = self.settings.data or self._home
        else:
            path, _, metric = name.partition(".jsonl:")
            file = Path(f"{path}.jsonl" if metric else path)
            self._home = self.default_data = file.parent
            self.settings = QuestionFile(file=file.name, metric=metric or DEFAULT_METRIC)
        self.folder, self.metric = Path(name).name if name.endswith(YAML) else self.settings.file, self.settings.metric
        self.metric_settings = self.settings.metric_settings
        self.chooses_by_likelihood = self.settings.choice_by == "likelihood"
        self.max_new_tokens, self.default_limit = self.settings.max_new_tokens, self.settings.limit
        self.answers_with_places, self.mirrors = self.settings.answers_with_places, self.settings.mirrors
        if METRICS.get(self.metric).line.model_fields["prediction"].annotation is float:
            raise UserError(f"{name}: {self.metric} scores probabilities, not answers; name another metric")

    def items(self, data: Path) -> list[Item]:
        """Questions in file order. Raises UserError naming the line that isn't one."""
        root = self._root(data)
        path = root / self.settings.file
        if not path.is_file():
            raise UserError(f"{path} does not exist; {self._remedy}")
        items: dict[str, Item] = {}
        for number, (where, line) in enumerate(self._lines(path), 1):
            name = line.id or str(number)
            if name in items:
                raise UserError(f"{where}: id {name!r} appears twice; every id must be unique")
            items[name] = self._item(name, line, where, root / self.settings.image_root)
            self.check_item(items[name], where)
        return list(items.values())

    def scores_of(self, result: Result) -> list[float]:
        """Right or wrong of answers that are places, as in the benchmarks of RefCOCO; else what the metric gives."""
        if not self.answers_with_places:
            return result.per_line
        is_right = METRICS.get(self.metric).is_right
        return [float(bool(is_right(score))) for score in result.per_line]

    def prompt(self, item: Item) -> str:
        return self.settings.prompt.replace("{question}", item.question)

    def majority(self, data: Path) -> MajorityAnswer | None:
        """From single turns of samples, or from questions and their first answers; None where there is no such file."""
        path = self._root(data) / (self.settings.majority or "")
        pairs = list(self._training_pairs(path)) if path.is_file() else []
        return MajorityAnswer(pairs) if pairs else None

    @property
    def _remedy(self) -> str:
        return "give a file of questions as JSON lines" if self.folder == self.settings.file else self.settings.source

    def _root(self, data: Path) -> Path:
        """The folder that all paths start from. Raises UserError where none of those that are named is there."""
        base = data if self.settings.data is not None else self._home
        places = [_installed(name) if name.startswith(PACKAGE) else base / name for name in self.settings.folder]
        found = next((place for place in places if place is not None and place.is_dir()), None)
        if found is None and len(places) > 1:
            raise UserError(f"{base / self.settings.folder[0]} does not exist; {self._remedy}")
        return found or base / self.settings.folder[0]

    def _lines(self, path: Path) -> Iterator[tuple[str, _Question]]:
        for index, (where, record) in enumerate(self._records(path)):
            try:
                yield where, self._question(index, record)
            except ValidationError as error:
                raise UserError(f"{where}: {first_problem(error)}; expected question, answer and image") from None
            except (KeyError, IndexError, ValueError) as error:
                raise UserError(f"{where}: {error.args[0]!r} is no column of it; see {self.folder}") from None

    def _records(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        columns = self.settings.columns
        if columns is None:
            yield from read_records(path)
            return
        for where, row in read_json(path, raise_error):
            if not isinstance(row, list) or len(row) != len(columns):
                raise UserError(f"{where}: expected a list of {', '.join(columns)}; found {json.dumps(row)[:80]}")
            yield where, dict(zip(columns, row, strict=True))

    def _question(self, index: int, record: Mapping[str, Any]) -> _Question:
        """Raises KeyError, IndexError or ValueError for a column that the record hasn't, ValidationError for no question."""
        texts = {name: getattr(self.settings, name) for name in ("id", "image", "video")}
        known = {"index": index, **record}
        own = {name: text.format_map(known) for name, text in texts.items() if text is not None}
        return _Question.model_validate({**record, **own})

    def _item(self, name: str, line: _Question, where: str, image_root: Path) -> Item:
        extra = (line.model_extra or {}) | ({} if line.options is None else {"options": line.options})
        for kind, keys in (("image", OTHER_IMAGE_KEYS), ("video", OTHER_VIDEO_KEYS)):
            other = next((key for key in keys if extra.get(key)), None)
            given = line.video if kind == "video" else line.image or line.images
            if not given and other is not None:
                several = ", several from images" if kind == "image" else ", one a question"
                raise UserError(f"{where}: {other}: the {kind} of a question is read from the key {kind}{several}")
        if line.image and line.images:
            raise UserError(f"{where}: a question has an `image` or several `images`; keep one of the keys")
        media = _media(line, image_root)
        words = tuple(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in line.references)
        references = line.references
        if self._wants_text:
            references = [json.dumps(r) if isinstance(r, int | float) else r for r in references]
        kind = self._type(line, words[0], where)
        fields = extra | {"references": references, "type": kind}
        return Item(name, media, line.question, words, kind, _group(line) or name, fields)

    def _type(self, line: _Question, answer: str, where: str) -> str:
        types = self.settings.types
        kind = next((kind for kind, answers in types.items() if answer in answers), None) if types else line.type
        if kind is None:
            known = ", ".join(answer for answers in types.values() for answer in answers)
            raise UserError(f"{where}: the answer {answer!r} is of no type; known are {known}")
        return kind

    def _training_pairs(self, path: Path) -> Iterator[tuple[str, str]]:
        for index, (where, record) in enumerate(self._records(path)):
            try:
                if "messages" in record:
                    pairs = list(_single_turns(where, record))
                else:
                    line = self._question(index, record)
                    pairs = [(line.question, str(line.references[0]))]
            except (BadRecordError, ValidationError) as error:
                problem = error.reason if isinstance(error, BadRecordError) else first_problem(error)
                raise UserError(f"{where}: no sample and no question: {problem}; write the data again") from None
            yield from pairs

    @property
    def _wants_text(self) -> bool:
        """Whether the metric's references are texts, of which a number in the file is one."""
        kind: type[Line] = METRICS.get(self.metric).line
        return kind.model_fields["references"].annotation == list[str]


def _media(line: _Question, root: Path) -> tuple[Medium, ...]:
    """The images of a question and then its video, as far as there are any."""
    images = tuple(Medium(str(root / image)) for image in (line.images or filter(None, [line.image])))
    return images if line.video is None else (*images, Medium(str(root / line.video), is_video=True))


def _group(line: _Question) -> str:
    """What questions about the same have in common; empty where nothing is shown."""
    return "\n".join(filter(None, (line.image, *line.images, line.video)))


def _single_turns(place: str, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The question and the answer of a sample, as training reads it, that holds one of each."""
    for sample in message_samples(place, record):
        if [message.role for message in sample.messages] == ["user", "assistant"]:
            yield sample.messages[0].text.strip(), sample.messages[1].text


def _installed(name: str) -> Path | None:
    """The folder of `package:NAME/FOLDER`, found without importing the package; None where it isn't installed."""
    package, _, folder = name.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) / folder if places else None


def is_user_file(name: str) -> bool:
    return name.endswith((".jsonl", *YAML)) or ".jsonl:" in name
