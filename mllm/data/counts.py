"""How many tokens every sample of an index becomes: counted once, so that a step can be laid out without rendering it.

The counts of a file lie beside its index, under a key made of the index's own and of all that decides about tokens: the
tokenizer, the prompt format, the planner of images and the code that renders. They hold what packing has to know
(`mllm.data.packing.Outline`) and why a sample can't be trained on; the limit on lengths isn't among it and may change.
"""

import hashlib
import inspect
import json
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np

import mllm.conversation
from mllm.conversation.formats import PROMPT_FORMATS
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.conversation.tokenize import spans_within
from mllm.data.counting import FileCounts, open_counts
from mllm.data.dataset import Mixture
from mllm.data.example import Example, kept_tokens
from mllm.data.index import cache_directory
from mllm.data.samples import IndexedSamples
from mllm.data.settings import OnTooLong
from mllm.errors import BadSampleError, UserError
from mllm.files import hash_files
from mllm.media.visual import ImageGeometry
from mllm.processor import Processor

PROBES = (
    [Message(role="user", content="What is it?"), Message(role="assistant", content="A cat.")],
    [
        Message(role="user", content=(ImagePart(), TextPart(text="And\tthis? "))),
        Message(role="assistant", content=" Zwei Hündchen"),
        Message(role="user", content="你好 </s>"),
        Message(role="assistant", content="12345"),
    ],
)


@dataclass(frozen=True)
class Counted:
    """A sample that isn't rendered yet, as packing sees it: what `render_example` would give, from its counts.

    image_spans: cut as its tokens are; row: of `counts`; number: in `samples`.
    """

    sample_id: str
    index: int
    length: int
    first_supervised: int
    image_spans: tuple[tuple[int, int], ...]
    cut_tokens: int
    counts: FileCounts
    row: int
    samples: IndexedSamples
    number: int

    @cached_property
    def images(self) -> tuple[str, ...]:
        return self.samples.image_names(self.number)[: len(self.image_spans)]

    @property
    def uncut_spans(self) -> tuple[tuple[int, int], ...]:
        """What is counted is of a model whose images each stand for themselves."""
        return self.image_spans

    @cached_property
    def tile_counts(self) -> tuple[int, ...]:
        """Tiles of each image."""
        return self.counts.tile_counts(self.row)[: len(self.image_spans)]

    @property
    def pictures(self) -> Hashable:
        """Its images: what is counted becomes the same in whatever company (`can_be_counted`)."""
        return self.images

    @cached_property
    def opening(self) -> np.ndarray:
        """int32 ids before the first token that is learned."""
        return self.counts.opening(self.row)

    def check(self, example: Example) -> None:
        """Raise UserError if `example`, rendered from this sample, isn't what was counted: ranks would disagree on rows."""
        for name in ("length", "first_supervised", "image_spans", "tile_counts"):
            if getattr(self, name) != getattr(example, name):
                raise UserError(
                    f"sample {self.sample_id!r} was counted with {name} {getattr(self, name)} and is rendered with "
                    f"{getattr(example, name)}; remove {self.counts.directory} to count again"
                )


class TokenCounts:
    """The counts of a mixture's samples."""

    def __init__(self, mixture: Mixture, processor: Processor) -> None:
        """Open the counts of every file, counting where that wasn't done; see `can_be_counted` for what is needed."""
        key = rendering_key(processor)
        self._mixture = mixture
        self._parts = [
            [open_counts(index_key, rows, processor, key) for index_key, rows in samples.source.files]
            for samples in mixture.indexed("the lengths of its samples")
        ]
        self._ends = [np.cumsum([len(counts) for counts in part]).tolist() for part in self._parts]

    def outline(self, index: int, max_length_tokens: int, on_too_long: OnTooLong) -> Counted:
        """The outline of a sample of the mixture. Raises BadSampleError as `render_example` would."""
        part, number = self._mixture.samples.place_of(index)
        samples = self._mixture.sources[part].samples
        assert isinstance(samples, IndexedSamples)
        row, file = int(samples.rows[number]), 0
        while row >= self._ends[part][file]:
            file += 1
        counts = self._parts[part][file]
        row -= self._ends[part][file] - len(counts)
        sample_id = samples.id_of(number)
        fault = counts.faults.get(row)
        if fault is not None:
            kind, reason = fault
            raise BadSampleError(sample_id, kind, reason) if kind else UserError(reason)
        length, first, spans = counts.figures(row)
        # For an error alone, and a look-up costs as much as the rest.
        place = samples.place_read(number) if length > max_length_tokens else ""
        kept = kept_tokens(sample_id, length, first, spans, max_length_tokens, on_too_long, place)
        spans = spans if kept == length else spans_within(spans, kept)
        return Counted(sample_id, index, kept, first, spans, length - kept, counts, row, samples, number)


def can_be_counted(mixture: Mixture, processor: Processor) -> bool:
    """Whether counts are possible: no source is a stream, no file has to be opened for its tokens, and there is a cache.

    A count of an image that was measured would say nothing of the file that lies there today, which may be another.
    """
    if processor.planner.depends_on_size or cache_directory() is None:
        return False
    parts = [source.samples for source in mixture.sources]
    return all(isinstance(part, IndexedSamples) and not part.opens_files() for part in parts)


def rendering_key(processor: Processor) -> str:
    """A hash of all that decides which tokens a conversation becomes.

    Beside settings and code it takes in what some conversations become, so that nothing a template knows is missed.
    """
    tokenizer = processor.tokenizer
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    settings = {
        "backend": {name: part for name, part in backend.items() if name not in ("truncation", "padding")},
        "vocabulary": tokenizer.get_vocab(),
        "specials": tokenizer.special_tokens_map,
        "kind": type(tokenizer).__name__,
        "format": [processor.format_name, repr(PROMPT_FORMATS.get(processor.format_name)), tokenizer.chat_template],
        "planner": repr(processor.planner),
        "probes": [_rendered(probe, processor) for probe in PROBES],
        "code": _code_hash(processor),
        "libraries": [version("transformers"), version("tokenizers")],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _rendered(probe: list[Message], processor: Processor) -> object:
    """What the conversation becomes, or why the prompt format refuses it."""
    size = (processor.geometry.image_size_px,) * 2
    try:
        tokens = processor.render(probe, [size] * sum(message.image_count for message in probe))
    except UserError as error:
        return str(error)
    return tokens.input_ids, tokens.supervised


def _code_hash(processor: Processor) -> str:
    files = {Path(inspect.getfile(kind)) for kind in (Processor, type(processor.planner), ImageGeometry, FileCounts)}
    files |= {Path(__file__).with_name("example.py"), *Path(mllm.conversation.__path__[0]).glob("*.py")}
    return hash_files(sorted(files))
