"""The files of a run, and its report."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mllm.conversation.pair import PreferencePair
from mllm.conversation.schema import ImagePart, Message, Part, Sample, TextPart
from mllm.data.readers.vqa import SUFFIX
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.data.writers import SampleWriter, open_writer
from mllm.errors import UserError
from mllm.files import atomic_file, write_text_atomically
from mllm.media.ref import is_stored
from mllm.outputs import check_files
from mllm.settings import dump_yaml
from mllm.synthesis.asking import Asked
from mllm.synthesis.backends.base import InstructionBackend
from mllm.synthesis.context import Context
from mllm.synthesis.damage import damaged
from mllm.synthesis.filters import NAMES, Candidate, ImageFilters
from mllm.synthesis.grounding import PLACED, parts_of
from mllm.synthesis.inputs import Refused
from mllm.synthesis.journal import Totals
from mllm.synthesis.prompts import Request, seeded_random
from mllm.synthesis.settings import InstructionConfig

BY = "mllm synth"
REPORT_NAME = "synth_report.json"
OF_IMAGES = ("bad_record", *ImageFilters.names, "duplicate_id", "no_facts")
OF_ANSWERS = ("unanswered", "unparsable", *NAMES, "judge")


class InstructionReport(BaseModel):
    """What a run wrote. `funnel`: what each stage refused, in order: of images until no_facts, then of requests.

    `answered_before`: by earlier runs into this output; tokens and cost are of all of them together. `yes_no`: first words
    of the answers of kind `absent`. `complete` is false where the budget or the server ended the run.
    """

    model_config = ConfigDict(frozen=True)

    data_hash: str
    seed: int
    backend: str
    complete: bool
    requests: int
    answered: int
    answered_before: int
    failed: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    cost: float
    samples: int
    written: dict[str, int]
    funnel: dict[str, int]
    yes_no: dict[str, int]


@dataclass
class Output:
    """Counts of what was written, by kind/language, and refused, by filter; `digest` is over all samples."""

    digest: str = ""
    written: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    yes_no: Counter[str] = field(default_factory=Counter)


def sample_of(candidate: Candidate) -> Sample:
    """The image comes first, in the first user turn; short answers in English are asked for in LLaVA-1.5's words."""
    request = candidate.request
    suffix = SUFFIX if request.kind == "short_vqa" and request.language == "en" else ""
    messages = []
    context = request.prompt.context
    for index, (question, answer) in enumerate(candidate.turns):
        asked, answered = (_parts(text, request) for text in (question + suffix, answer))
        messages.append(Message(role="user", content=asked if index else (ImagePart(), *asked)))
        messages.append(Message(role="assistant", content=answered))
    if candidate.pair is not None:
        return PreferencePair(
            id=request.id,
            messages=tuple(messages[:-1]),
            images=(context.image,),
            source=context.source,
            kind=request.prompt.sort,
            chosen=messages[-1].content,
            rejected=_parts(candidate.pair.rejected, request),
            scores=candidate.pair.scores,
            margin=candidate.pair.margin,
        )
    return Sample(
        id=request.id, messages=tuple(messages), images=(context.image,), source=context.source, kind=request.kind
    )


def _parts(text: str, request: Request) -> tuple[Part, ...]:
    """The words of a turn; places are boxes as data, so that any box format comes of them."""
    return parts_of(text, request.prompt.context) if request.kind in PLACED else (TextPart(text=text),)


def write_output(config: InstructionConfig, items: Iterable[Candidate | Refused]) -> Output:
    """Write the samples of each input, the rejected, and a recipe; each file has its name only once it is whole.

    An input whose images lie inside its file becomes a parquet file with the images inside, another JSON lines. Of an
    earlier run nothing stays that this one did not write.
    """
    root, output, digest = config.output, Output(), hashlib.sha256()
    writers: dict[str, SampleWriter] = {}
    with ExitStack() as stack:
        rejected = stack.enter_context(atomic_file(root / "rejected.jsonl", BY))
        refusals = stack.enter_context(open(rejected, "w", encoding="utf-8"))
        for item in items:
            if isinstance(item, Refused):
                output.refused[item.filter] += 1
                refusals.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
                continue
            context = item.request.prompt.context
            sample = _written(sample_of(item), context, config)
            if context.source not in writers:
                holds = is_stored(context.location)
                path = sample_files(root, context.source)[holds]
                writers[context.source] = stack.enter_context(open_writer(path, BY, embed_images=holds))
            writers[context.source].write(sample, {context.image: context.location}.__getitem__)
            digest.update(sample.model_dump_json().encode("utf-8", "surrogatepass"))
            output.written[f"{sample.kind}/{item.request.language}"] += 1
            if sample.kind == "absent":
                firsts = (answer.lower().split(maxsplit=1)[:1] for _, answer in item.turns)
                output.yes_no.update(word.strip(",.!:;") for first in firsts for word in first)
    output.digest = digest.hexdigest()
    written = {name: writer.path for name, writer in writers.items()}
    for source in config.inputs:
        for path in sample_files(root, source.name):
            if path != written.get(source.name):
                path.unlink(missing_ok=True)
    _write_recipe(config, written)
    return output


def _written(sample: Sample, context: Context, config: InstructionConfig) -> Sample:
    """`sample`, or, of the share of pairs that become such, the one about its damaged image."""
    rng = seeded_random(config.seed, sample.id, "damage")
    if not isinstance(sample, PreferencePair) or rng.random() >= config.damage.share:
        return sample
    root = next(Path(source.image_root) for source in config.inputs if source.name == context.source)
    return damaged(sample, context, root, config.damage, rng, BY)


def sample_files(root: Path, name: str) -> tuple[Path, Path]:
    """The files that the samples of an input may become."""
    return root / f"{name}.jsonl", root / f"{name}.parquet"


def check_output(config: InstructionConfig) -> None:
    """Raise UserError if a file of the inputs, or one that no earlier run wrote, would be replaced by the output."""
    root = config.output
    written = [path for source in config.inputs for path in sample_files(root, source.name)]
    paths = (*written, root / "rejected.jsonl", root / "recipe.yaml", root / REPORT_NAME)
    targets = {path.resolve() for path in paths}
    for source in config.inputs:
        for file in SourceSettings(path=source.path, image_root=source.image_root).files():
            if Path(file).resolve() in targets:
                raise UserError(f"output {root}: the samples would replace the input {file}; name another directory")
    check_files(root, [path.name for path in paths], BY)


def _write_recipe(config: InstructionConfig, files: dict[str, Path]) -> None:
    roots = {source.name: source.image_root for source in config.inputs}
    reader, stage = ("pairs", "any") if config.writes_pairs else ("messages", "instruct")
    sources = tuple(
        SourceSettings(path=str(path), reader=reader, image_root=roots[name]) for name, path in files.items()
    )
    if sources:
        recipe = RecipeSettings.model_validate({"name": config.output.name, "stage": stage, "sources": sources})
        write_text_atomically(config.output / "recipe.yaml", dump_yaml(recipe), BY)
    else:
        (config.output / "recipe.yaml").unlink(missing_ok=True)


def report_of(
    config: InstructionConfig,
    output: Output,
    asked: Asked,
    complete: bool,
    totals: Totals,
    backend: InstructionBackend,
) -> InstructionReport:
    """The report, and an error in place of one that has counts of nothing."""
    samples = sum(output.written.values())
    requests = samples + sum(output.refused[name] for name in OF_ANSWERS)
    if not requests:
        reasons = ", ".join(f"{name} {count}" for name, count in output.refused.items())
        raise UserError(f"the inputs give nothing to ask about ({reasons or 'they are empty'}); see rejected.jsonl")
    return InstructionReport(
        data_hash=output.digest,
        seed=config.seed,
        backend=config.backend.kind,
        complete=complete,
        requests=requests,
        answered=requests - output.refused["unanswered"],
        answered_before=asked.from_before,
        failed=dict(asked.failed),
        prompt_tokens=totals.prompt_tokens,
        completion_tokens=totals.completion_tokens,
        cost=backend.cost(totals.prompt_tokens, totals.completion_tokens),
        samples=samples,
        written=dict(sorted(output.written.items())),
        funnel={name: output.refused[name] for name in (*OF_IMAGES, *OF_ANSWERS)},
        yes_no=dict(sorted(output.yes_no.items())),
    )
