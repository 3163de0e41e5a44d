"""`mllm data validate`: every sample read, checked, and its images decoded, before a run meets what is wrong."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from mllm.config import dump_yaml
from mllm.conversation.schema import Sample
from mllm.data.readers import READERS
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.records import read_with_places
from mllm.data.readers.remote import is_url
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.data.samples import with_resolved_images
from mllm.data.writers import SampleWriter, open_writer
from mllm.errors import BadSampleError, UserError
from mllm.files import write_text_atomically
from mllm.images.decode import read_image

AHEAD = 256
EXAMPLES = 3
HOLD_IMAGES = (".parquet", ".tar")
Check = Callable[[Sample], None]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one sample. `place` is `file:line` or alike; `id` is empty for a record that isn't a sample."""

    place: str
    id: str
    kind: str
    reason: str


@dataclass
class Findings:
    """What a validation found. `samples` counts the samples that could be read."""

    samples: int = 0
    images: int = 0
    problems: list[Problem] = field(default_factory=list)

    def table(self) -> Table:
        """A row for each kind of problem: how many, and the first of them."""
        table = Table("what is wrong", "samples", "for example")
        for kind, count in Counter(problem.kind for problem in self.problems).most_common():
            shown = [p for p in self.problems if p.kind == kind][:EXAMPLES]
            table.add_row(kind, str(count), "\n".join(f"{p.place}: {p.reason}" for p in shown))
        return table

    def write_list(self, path: Path) -> None:
        """All problems as JSON lines of place, id, kind and reason."""
        lines = [json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in self.problems]
        write_text_atomically(path, "".join(lines))


def validate(
    recipe: RecipeSettings,
    jobs: int,
    check: Check | None = None,
    fix_directory: Path | None = None,
    advance: Callable[[Findings], None] = lambda findings: None,
) -> Findings:
    """Check every sample of every file of `recipe` once, whatever part of it the recipe asks for.

    `jobs` threads decode images; check(sample) may raise BadSampleError for more than the schema can know (length,
    labels), and is given samples whose images are whole. With `fix_directory`, the good samples of each source are
    written there, and a recipe that names them; of samples with the same id all but the first get a new one, and those of
    a tar or parquet file become parquet with the images inside.
    advance(findings) is called after every sample. Raises UserError when there is nothing good to write.
    """
    findings = Findings()
    done: dict[tuple[str, str, str], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for source in recipe.sources:
            key = (source.path, source.reader, source.image_root)
            if key not in done:
                done[key] = _validate_source(source, len(done), pool, check, fix_directory, findings, advance)
    if fix_directory is not None:
        sources = [
            source.model_copy(
                update={"path": done[source.path, source.reader, source.image_root], "reader": "messages"}
            )
            for source in recipe.sources
        ]
        fixed = recipe.model_copy(update={"sources": tuple(sources)})
        write_text_atomically(fix_directory / "recipe.yaml", dump_yaml(fixed))
    return findings


def _validate_source(
    source: SourceSettings,
    number: int,
    pool: ThreadPoolExecutor,
    check: Check | None,
    fix_directory: Path | None,
    findings: Findings,
    advance: Callable[[Findings], None],
) -> str:
    """Returns the path of the clean copy, "" where none is written."""
    seen: Counter[str] = Counter()
    writer: SampleWriter | None = None
    with ExitStack() as stack:
        for place, original, resolved, problem in _examined(source, pool, check, findings):
            seen[original.id] += 1
            if problem is not None:
                findings.problems.append(problem)
            if seen[original.id] == 2:
                findings.problems.append(Problem(place, original.id, "duplicate_id", "another sample has this id"))
            if fix_directory is not None and problem is None:
                if writer is None:
                    is_held = Path(source.path).suffix in HOLD_IMAGES
                    name = f"{number}-{_stem(source.path)}{'.parquet' if is_held else '.jsonl'}"
                    writer = stack.enter_context(open_writer(fix_directory / name, embed_images=is_held))
                if seen[original.id] > 1:
                    original = original.model_copy(update={"id": f"{original.id}~{seen[original.id]}"})
                writer.write(original, dict(zip(original.images, resolved.images, strict=True)).__getitem__)
            advance(findings)
    if writer is None and fix_directory is not None:
        raise UserError(f"source {source.path} has no good samples to write a clean copy of")
    return str(writer.path) if writer is not None else ""


def _stem(path: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(path).stem)


Examined = tuple[str, Sample, Sample, Problem | None]


def _examined(
    source: SourceSettings, pool: ThreadPoolExecutor, check: Check | None, findings: Findings
) -> Iterator[Examined]:
    """(place, sample as read, sample with resolved images, what is wrong with it), in the order of the files."""
    reader, root, files = READERS.get(source.reader), Path(source.image_root), source.files()
    holders = [str(Path(file)) for file in files]
    decoded: dict[str, Future[str | None] | str | None] = {}
    waiting: deque[tuple[str, Sample, Sample, Problem | None]] = deque()

    def note(error: BadRecordError) -> None:
        findings.problems.append(Problem(error.place, "", "unreadable", error.reason))

    def error_of(image: str) -> str | None:
        error = decoded[image]
        if isinstance(error, Future):
            error = decoded[image] = error.result()
        return error

    def finish(place: str, sample: Sample, resolved: Sample, problem: Problem | None) -> Examined:
        reasons = [] if problem else [error_of(image) for image in resolved.images]
        reason = next((r for r in reasons if r is not None), None)
        if reason is not None:
            problem = Problem(place, sample.id, "image", reason)
        elif problem is None and check is not None:
            problem = _problem_of(place, lambda: check(resolved))
        return place, sample, resolved, problem

    for file in files:
        try:
            for place, sample in read_with_places(reader, file if is_url(file) else Path(file), note):
                findings.samples += 1
                resolved = sample
                problem = _problem_of(place, sample.check)
                if problem is None:
                    try:
                        resolved = with_resolved_images(sample, root, holders)
                    except BadSampleError as error:
                        problem = Problem(place, sample.id, error.kind, error.reason)
                    else:
                        for image in resolved.images:
                            if image not in decoded:
                                decoded[image] = pool.submit(_decoding_error, image)
                                findings.images += 1
                waiting.append((place, sample, resolved, problem))
                if len(waiting) > AHEAD:
                    yield finish(*waiting.popleft())
        except UserError as error:
            findings.problems.append(Problem(file, "", "unreadable", str(error)))
    while waiting:
        yield finish(*waiting.popleft())


def _problem_of(place: str, check: Callable[[], None]) -> Problem | None:
    try:
        check()
    except BadSampleError as error:
        return Problem(place, error.sample_id, error.kind, error.reason)
    return None


def _decoding_error(image: str) -> str | None:
    try:
        read_image(image)
    except UserError as error:
        return str(error)
    return None
