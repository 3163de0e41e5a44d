"""`mllm data validate`: every sample read, checked, and its images and videos decoded, before a run meets what is wrong."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from mllm.conversation.pair import PreferencePair, sides_of
from mllm.conversation.schema import Sample, boxes_of
from mllm.data.pair_counts import PairCounts
from mllm.data.readers import READERS
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.records import read_with_places
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.data.samples import with_resolved_images
from mllm.data.writers import SampleWriter, open_writer
from mllm.errors import BadSampleError, UserError
from mllm.files import write_text_atomically
from mllm.media.clip import check_frames, read_clip
from mllm.media.decode import read_image, read_image_size
from mllm.media.remote import is_url
from mllm.media.sampling import sample_frames
from mllm.outputs import check_files
from mllm.settings import dump_yaml

BY = "mllm data validate"
AHEAD = 256
EXAMPLES = 3
FRAMES_DECODED = 8  # of a video, from its first to its last
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
    """What a validation found. `samples` counts the samples that could be read, `images` and `videos` files, each once.

    clipped: boxes of good samples that reach beyond their image, and are cut at its edges when they are trained on.
    pairs: what the good pairs are like; bad_pairs: how many others there are.
    """

    samples: int = 0
    images: int = 0
    videos: int = 0
    clipped: int = 0
    pairs: PairCounts = field(default_factory=PairCounts)
    bad_pairs: int = 0
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
        write_text_atomically(path, "".join(lines), BY)


def validate(
    recipe: RecipeSettings,
    jobs: int,
    check: Check | None = None,
    fix_directory: Path | None = None,
    advance: Callable[[Findings], None] = lambda findings: None,
) -> Findings:
    """Check every sample of every file of `recipe` once, whatever part of it the recipe asks for.

    `jobs` threads decode images, and of videos some frames; check(sample) may raise BadSampleError for more than the schema
    can know (length, labels), and is given samples whose images are whole. With `fix_directory`, the good samples of each
    source are
    written there, and a recipe that names them; of samples with the same id all but the first get a new one, and those of
    a tar or parquet file become parquet with the images inside.
    advance(findings) is called after every sample. Raises UserError when there is nothing good to write.
    """
    findings, readers = Findings(), dict[tuple[str, str, str], str]()
    distinct = {_key(source): source for source in recipe.sources}
    copies = {key: _copy_name(number, source) for number, (key, source) in enumerate(distinct.items())}
    if fix_directory is not None:
        check_files(fix_directory, [*copies.values(), "recipe.yaml"], BY)
    with ThreadPoolExecutor(jobs) as pool, ExitStack() as files:  # which have their names when all of it is done
        for key, source in distinct.items():
            copy = None if fix_directory is None else fix_directory / copies[key]
            before = findings.pairs.pairs
            _validate_source(source, copy, files, pool, check, findings, advance)
            readers[key] = "pairs" if findings.pairs.pairs > before else "messages"
    if fix_directory is not None:
        sources = [
            source.model_copy(
                update={"path": str(fix_directory / copies[_key(source)]), "reader": readers[_key(source)]}
            )
            for source in recipe.sources
        ]
        fixed = recipe.model_copy(update={"sources": tuple(sources)})
        write_text_atomically(fix_directory / "recipe.yaml", dump_yaml(fixed), BY)
    return findings


def _key(source: SourceSettings) -> tuple[str, str, str]:
    return source.path, source.reader, source.image_root


def _holds_images(source: SourceSettings) -> bool:
    return Path(source.path).suffix in HOLD_IMAGES


def _copy_name(number: int, source: SourceSettings) -> str:
    """What the clean copy of a recipe's n-th file of samples is called."""
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(source.path).stem)
    return f"{number}-{stem}{'.parquet' if _holds_images(source) else '.jsonl'}"


def _validate_source(
    source: SourceSettings,
    copy: Path | None,
    files: ExitStack,
    pool: ThreadPoolExecutor,
    check: Check | None,
    findings: Findings,
    advance: Callable[[Findings], None],
) -> None:
    """`copy`: where the clean copy goes; the writer of it is left to `files` to close."""
    seen: Counter[str] = Counter()
    writer: SampleWriter | None = None
    for original, resolved, is_good in examined(source, pool, check, findings):
        seen[original.id] += 1
        if copy is not None and is_good:
            if writer is None:
                writer = files.enter_context(open_writer(copy, BY, embed_images=_holds_images(source)))
            if seen[original.id] > 1:
                original = original.model_copy(update={"id": f"{original.id}~{seen[original.id]}"})
            writer.write(original, dict(zip(original.images, resolved.images, strict=True)).__getitem__)
        advance(findings)
    if writer is None and copy is not None:
        raise UserError(f"source {source.path} has no good samples to write a clean copy of")


Examined = tuple[Sample, Sample, bool]


def examined(
    source: SourceSettings,
    pool: ThreadPoolExecutor,
    check: Check | None,
    findings: Findings,
    looks_at_images: bool = True,
) -> Iterator[Examined]:
    """(sample as read, sample with resolved images, whether it is good), in the order of the files.

    What is wrong goes into `findings`. looks_at_images: find and decode images and videos; else they stay as the records
    name them.
    """
    reader, root, files = READERS.get(source.reader), Path(source.image_root), source.files()
    holders = [str(Path(file)) for file in files]
    decoded: dict[tuple[str, str], Future[str | None] | str | None] = {}  # by what it is, and where
    seen: Counter[str] = Counter()
    waiting: deque[tuple[str, Sample, Sample, Problem | None]] = deque()

    def note(error: BadRecordError) -> None:
        findings.problems.append(Problem(error.place, "", "unreadable", error.reason))

    def error_of(kind: str, image: str) -> str | None:
        error = decoded[kind, image]
        if isinstance(error, Future):
            error = decoded[kind, image] = error.result()
        return error

    def finish(place: str, sample: Sample, resolved: Sample, problem: Problem | None) -> Examined:
        reasons = [] if problem or not looks_at_images else [error_of(*shown) for shown in resolved.shown]
        reason = next((r for r in reasons if r is not None), None)
        if reason is not None:
            problem = Problem(place, sample.id, "image", reason)
        elif problem is None and check is not None:
            problem = _problem_of(place, lambda: check(resolved))
        if problem is not None:
            findings.problems.append(problem)
            findings.bad_pairs += isinstance(sample, PreferencePair)
        elif looks_at_images:
            findings.clipped += _clipped(resolved)
        if problem is None and isinstance(sample, PreferencePair):
            findings.pairs.add(sample)
        seen[sample.id] += 1
        if seen[sample.id] == 2:
            findings.problems.append(Problem(place, sample.id, "duplicate_id", "another sample has this id"))
        return sample, resolved, problem is None

    for file in files:
        try:
            for place, sample in read_with_places(reader, file if is_url(file) else Path(file), note):
                findings.samples += 1
                resolved = sample
                problem = _problem_of(place, sample.check)
                if problem is None and looks_at_images:
                    try:
                        resolved = with_resolved_images(sample, root, holders)
                    except BadSampleError as error:
                        problem = Problem(place, sample.id, error.kind, error.reason)
                    else:
                        for kind, image in resolved.shown:
                            if (kind, image) not in decoded:
                                decoded[kind, image] = pool.submit(_decoding_error, kind, image)
                                findings.images += kind == "image"
                                findings.videos += kind == "video"
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


def _clipped(sample: Sample) -> int:
    """How many places of a sample reach beyond their image."""
    count = 0
    for part in dict.fromkeys(part for side in sides_of(sample) for part in boxes_of(side.messages)):
        size = read_image_size(sample.images[part.image]) if part.unit == "pixels" else (1, 1)
        count += sum(not region.is_within for region in part.shares(size))
    return count


def _decoding_error(kind: str, image: str) -> str | None:
    try:
        if kind == "video":
            check_frames(image, sample_frames(read_clip(image), "inclusive", FRAMES_DECODED))
        else:
            read_image(image)
    except UserError as error:
        return str(error)
    return None
