"""A run of the generator from start to end: load sources, decontaminate, draft, write, check, report.

Test pictures are kept out of training twice: dropped before sampling, and checked again on what was written.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_recipes.demo.captioned_parquet import load_captioned_parquet
from data_recipes.demo.drafts import Drafted, LoadedSource, SourceOutput, in_words
from data_recipes.demo.easyvqa import load_easyvqa
from data_recipes.demo.picture import Picture, pixel_hash
from data_recipes.demo.rendered_words import load_rendered_words
from data_recipes.demo.settings import GeneratorSettings
from data_recipes.demo.writing import (
    REPORT_NAME,
    GeneratorReport,
    ImageStore,
    count_rows,
    hash_directory,
    pair_rows,
    question_rows,
    sample_rows,
    write_lines,
    yes_no_balance,
)
from mllm.data.readers.errors import raise_error
from mllm.data.readers.json_lines import read_lines
from mllm.errors import UserError
from mllm.files import atomic_directory, write_json_atomically
from mllm.outputs import check_directory
from mllm.synthesis.prompts import seeded_random

BY = "python -m data_recipes.demo"
TRAINING_FILES = ("captions.jsonl", "instruct.jsonl", "in_words.jsonl", "clip_pairs.jsonl")
# The settings class of each kind differs: the discriminated union in settings.py pairs it with its function.
SOURCES: dict[str, Callable[[Any, int], LoadedSource]] = {
    "easyvqa": load_easyvqa,
    "captioned_parquet": load_captioned_parquet,
    "rendered_words": load_rendered_words,
}


def generate(config: GeneratorSettings) -> GeneratorReport:
    """Write `config.output` whole or not at all and return its report (also in `synth_report.json`).

    The directory holds `images/`, `captions.jsonl`, `instruct.jsonl`, `in_words.jsonl`, `clip_pairs.jsonl` and
    `heldout/*.jsonl`; image paths in them are relative to it. An earlier run's directory is replaced. Raises UserError for
    missing or unusable sources, and where the directory holds anything else, or a source.
    """
    names = [source.name for source in config.sources]
    if len(set(names)) < len(names):
        raise UserError(f"sources: each needs its own name, found {', '.join(names)}; set `name` in the config")
    check_directory(config.output, BY, [source.path for source in config.sources if source.path is not None])
    outputs, dropped = draft_all(config)
    with atomic_directory(config.output, BY) as root:
        store = ImageStore(root)
        files = write_all(root, outputs, store, config.seed)
        check_no_leak(root, [root / name for name in TRAINING_FILES], sorted((root / "heldout").glob("*.jsonl")))
        report = _report(config, files, outputs, dropped, len(store), hash_directory(root))
        write_json_atomically(root / REPORT_NAME, report.model_dump(mode="json"))
    return report


def draft_all(config: GeneratorSettings) -> tuple[list[SourceOutput], dict[str, dict[str, int]]]:
    """Each source's output, and per source the counts of what filters and decontamination dropped."""
    loaded = [SOURCES[source.kind](source, config.seed) for source in config.sources]
    heldout = picture_hashes(p for source in loaded for p in source.test)
    outputs, dropped = [], {}
    for source_config, source in zip(config.sources, tqdm(loaded, desc="drafting", disable=None), strict=True):
        train = without_hashes(source.train, heldout)
        output = source.write(train, config.seed)
        rng = seeded_random(config.seed, source_config.name, "in_words")
        output.in_words = in_words(output.captions + output.instruct, rng)
        outputs.append(output)
        source.filtered["in_test_split"] += len(source.train) - len(train)
        dropped[source_config.name] = dict(sorted(source.filtered.items()))
    return outputs, dropped


def write_all(root: Path, outputs: list[SourceOutput], store: ImageStore, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Write every file of the run; returns the rows by file name."""
    files = {
        f"{name}.jsonl": sample_rows(shuffle_groups([d for o in outputs for d in getattr(o, name)], seed), store)
        for name in ("captions", "instruct", "in_words")
    }
    files |= {
        "clip_pairs.jsonl": pair_rows([pair for o in outputs for pair in o.clip_pairs], store),
        "heldout/clip_pairs.jsonl": pair_rows([pair for o in outputs for pair in o.heldout_clip_pairs], store),
    }
    for output in outputs:
        for stem, questions in output.heldout.items():
            files.setdefault(f"heldout/{stem}.jsonl", []).extend(question_rows(questions, store))
    for name, rows in tqdm(files.items(), desc="writing", unit="file", disable=None):
        write_lines(root / name, rows)
    return files


def shuffle_groups(drafts: list[Drafted], seed: int) -> list[Drafted]:
    """Sources mixed, samples of one picture kept side by side, so that a first part of the file is a fair sample."""
    groups: dict[tuple[str, str], list[Drafted]] = {}
    for item in drafts:
        groups.setdefault((item.picture.source, item.picture.key), []).append(item)
    order = list(groups.values())
    seeded_random(seed, "shuffle").shuffle(order)
    return [item for group in order for item in group]


def _report(
    config: GeneratorSettings,
    files: dict[str, list[dict[str, Any]]],
    outputs: list[SourceOutput],
    dropped: dict[str, dict[str, int]],
    image_count: int,
    data_hash: str,
) -> GeneratorReport:
    rows = files["captions.jsonl"] + files["instruct.jsonl"] + files["in_words.jsonl"]
    balance = yes_no_balance(files["instruct.jsonl"] + files["in_words.jsonl"])
    requested = {
        f"{source.name}/{kind}": count
        for source, output in zip(config.sources, outputs, strict=True)
        for kind, count in output.requested.items()
        if count
    }
    return GeneratorReport(
        data_hash=data_hash,
        seed=config.seed,
        image_count=image_count,
        files={name: count_rows(content) for name, content in files.items()},
        requested=requested,
        written=dict(sorted(Counter(f"{row['source']}/{row['kind']}" for row in rows).items())),
        dropped=dropped,
        yes_no_texts=len(balance),
        yes_no_unbalanced_texts=sorted(text for text, n in balance.items() if n["yes"] != n["no"]),
    )


def picture_hashes(pictures: Iterable[Picture]) -> set[str]:
    """Pixel hashes of the pictures."""
    return {pixel_hash(p.data, f"{p.source} {p.key}") for p in pictures}


def without_hashes(pictures: list[Picture], forbidden: set[str]) -> list[Picture]:
    """The pictures whose pixels are not among `forbidden`."""
    return [p for p in pictures if pixel_hash(p.data, f"{p.source} {p.key}") not in forbidden]


def check_no_leak(root: Path, training: list[Path], heldout: list[Path]) -> None:
    """Raise UserError naming both files if a picture of a held-out file is in a training file."""
    hash_of: dict[str, str] = {}

    def hashes(path: Path) -> dict[str, str]:
        found = {}
        for _, row in read_lines(path, raise_error):
            for image in row["images"] if "images" in row else [row["image"]]:
                if image not in hash_of:
                    hash_of[image] = pixel_hash((root / image).read_bytes(), image)
                found[hash_of[image]] = image
        return found

    held = {path: hashes(path) for path in heldout}
    for train_path in training:
        trained = hashes(train_path)
        for heldout_path, hidden in held.items():
            for leaked in sorted(trained.keys() & hidden.keys()):
                raise UserError(
                    f"{train_path.name} trains on {trained[leaked]}, which {heldout_path.relative_to(root)} holds out "
                    f"as {hidden[leaked]}; remove it from one of the two sources"
                )
