"""The circle from a generator back to the multimodal LLM: prompts become pictures, those that a judge finds right become
samples to learn from."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.conversation.schema import ImagePart, Message, Sample, TextPart
from mllm.data.recipe import RecipeSettings
from mllm.data.writers import open_writer
from mllm.errors import UserError
from mllm.files import write_json_atomically, write_text_atomically
from mllm.generation.judging.drawing import Paint, PictureFolder
from mllm.generation.judging.drawn import Drawn, Questions
from mllm.generation.judging.judges import Verdict, is_right
from mllm.settings import dump_yaml

BY = "mllm generate data"
CAPTION_QUESTION = "Describe the image."
CAPTIONS, INSTRUCT, PAIRS, COUNTS, RECIPE = (
    "captions.jsonl", "instruct.jsonl", "clip_pairs.jsonl", "counts.json", "recipe.yaml",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How many pictures are drawn and kept.

    tries: of each prompt at most. kept: of each prompt, after which it is left; None draws all tries. least: the
    thresholds of what is judged, all of which a picture has to reach.
    """

    prompts: Sequence[str]
    tries: int
    kept: int | None
    least: Mapping[str, float]
    seed: int
    batch: int


def fill(
    folder: PictureFolder,
    paint: Paint,
    judge: Callable[[Sequence[Drawn]], list[Verdict]],
    plan: Plan,
    noted: Mapping[str, Any],
) -> Iterator[int]:
    """Draw and judge until each prompt has what the plan wants; yields how many pictures came, after each batch.

    Every picture has its line, kept or not, with the verdict. What is drawn next is a function of the rounds before, one try
    of each unfinished prompt a round, so that a run that was stopped goes on to the same pictures.
    """

    def look(pictures: Sequence[Drawn]) -> list[dict[str, Any]]:
        told = judge(pictures)
        return [{"verdict": verdict, "kept": is_right(verdict, plan.least)} for verdict in told]

    for number in range(plan.tries):
        before = [record for record in folder.records if record["number"] < number]
        kept = Counter(record["caption"] for record in before if record["kept"])
        done = {record["caption"] for record in folder.records if record["number"] == number}
        unfinished = [prompt for prompt in plan.prompts if plan.kept is None or kept[prompt] < plan.kept]
        wanted = [(prompt, number) for prompt in unfinished if prompt not in done]
        for start in range(0, len(wanted), plan.batch):
            some = wanted[start : start + plan.batch]
            folder.draw(paint, some, plan.seed, noted, look)
            yield len(some)


def counts_of(records: Sequence[Mapping[str, Any]], prompts: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many pictures of each prompt were kept and rejected."""
    kept = Counter(record["caption"] for record in records if record["kept"])
    drawn = Counter(record["caption"] for record in records)
    return {prompt: {"kept": kept[prompt], "rejected": drawn[prompt] - kept[prompt]} for prompt in prompts}


def samples_of(records: Sequence[Mapping[str, Any]], questions: Questions, name: str, source: str) -> Iterator[Sample]:
    """Of each picture a sample of its caption, and one of each question about it, of which kind is the question's type.

    name: what the samples' ids begin with. source: the generator that made the pictures.
    """
    for record in records:
        image, caption = record["image"], record["caption"]
        own = f"{name}-{Path(image).stem}"
        yield _sample(f"{own}-caption", image, CAPTION_QUESTION, caption, source, "caption")
        for number, one in enumerate(questions.get(caption, ())):
            kind = one.type if one.type != "all" else "question"
            yield _sample(f"{own}-{number}", image, one.question, one.answer, source, kind)


def _sample(sample_id: str, image: str, question: str, answer: str, source: str, kind: str) -> Sample:
    asked = Message(role="user", content=(ImagePart(), TextPart(text=question)))
    said = Message(role="assistant", content=(TextPart(text=answer),))
    return Sample(id=sample_id, messages=(asked, said), images=(image,), source=source, kind=kind)


def write_samples(
    directory: Path, records: Sequence[Mapping[str, Any]], questions: Questions, source: str, by: str = BY
) -> dict[str, int]:
    """Write samples of the pictures to `directory`, whose images they name, and a recipe of them; how many of each file.

    captions.jsonl and instruct.jsonl are in the project's schema, clip_pairs.jsonl is for `mllm clip train` and for another
    generator. Raises UserError where there is no picture.
    """
    if not records:
        raise UserError(f"{directory}: no picture was kept; lower the thresholds, draw more, or train the generator on")
    samples = list(samples_of(records, questions, directory.name, source))
    parts = {
        CAPTIONS: [sample for sample in samples if sample.kind == "caption"],
        INSTRUCT: [sample for sample in samples if sample.kind != "caption"],
    }
    counts = {}
    for name, own in parts.items():
        if own:
            with open_writer(directory / name, by) as writer:
                for sample in own:
                    writer.write(sample, lambda image: str(directory / image))
            counts[name] = writer.count
    pairs = "".join(
        json.dumps({name: r[name] for name in ("image", "caption")}, ensure_ascii=False) + "\n" for r in records
    )
    write_text_atomically(directory / PAIRS, pairs, by)
    sources = [{"path": str(directory / name), "image_root": str(directory)} for name in counts]
    recipe = RecipeSettings.model_validate({"name": directory.name, "sources": sources})
    write_text_atomically(directory / RECIPE, dump_yaml(recipe), by)
    return counts | {PAIRS: len(records)}


def finish(folder: PictureFolder, plan: Plan, questions: Questions, source: str, provenance: Mapping[str, Any]) -> str:
    """Write the samples of what was kept and `counts.json`; returns what came of it, in a line."""
    kept = [record for record in folder.records if record["kept"]]
    counts = counts_of(folder.records, plan.prompts)
    write_json_atomically(folder.directory / COUNTS, {"made": dict(provenance), "prompts": counts}, BY)
    written = write_samples(folder.directory, kept, questions, source)
    files = ", ".join(f"{count:,} in {name}" for name, count in written.items())
    return f"{len(kept):,} of {len(folder.records):,} pictures kept: {files}"
