"""What conformance checks of a model, one figure each: a difference to transformers alone, or a count of what is wrong."""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from mllm.batch import Batch
from mllm.checkpoint import public
from mllm.conformance.reference import peers_inputs, peers_logits, summed_loss
from mllm.conformance.samples import Trial
from mllm.conformance.turns import chat, shared
from mllm.conversation.schema import Sample
from mllm.data.collate import collate
from mllm.data.example import Example, render_example
from mllm.data.packing import Row, pack
from mllm.data.settings import Packing
from mllm.errors import BadSampleError
from mllm.model.public import PublicModel, PublicProcessor

TOLERANCE = 1e-5
LONGEST = 1 << 20


class Check(NamedTuple):
    """title: a table's heading. says: what the figure is. is_count: whether it has to be 0, else at most TOLERANCE."""

    title: str
    says: str
    is_count: bool = False


CHECKS = {
    "tokens": Check("ids", "tokens that aren't those of transformers' processor", is_count=True),
    "labels": Check("labels", "answers that the trained tokens don't decode to", is_count=True),
    "prompts": Check("prompts", "generation prompts that are no prefix of what is trained", is_count=True),
    "alone": Check("alone", "largest difference of the logits of a sample alone to transformers'"),
    "packed": Check("packed", "largest difference of the logits of packed samples to transformers' of each alone"),
    "gradients": Check("gradients", "the same of gradients, each tensor's over its largest entry or 1"),
    "isolated": Check(
        "A moves B", "largest difference of a sample's logits when its neighbour has other words and pixels"
    ),
    "branches": Check(
        "branches",
        "largest difference of logits on a shared opening to transformers' of the full sequence (where attention has windows "
        "or spans of its own, openings aren't shared and samples are packed whole)",
    ),
    "batch": Check("batch n", "largest difference of logits in a batch of several padded rows to those of a row alone"),
    "text": Check("text only", "largest difference of the logits of a batch without images to transformers'"),
    "unlearned": Check(
        "unlearned",
        "tensors that learn in transformers and have no gradient here, or are kept from learning",
        is_count=True,
    ),
    "saved": Check("saved", "largest difference of logits after saving and loading"),
    "turns": Check(
        "turns",
        "largest difference of the logits that a chat answers by, behind the keys and values that it keeps, to transformers' "
        "of the whole conversation",
    ),
    "chat": Check("chat", "answers of a chat over turns that a fresh computation doesn't give", is_count=True),
    "shared": Check(
        "shared",
        "largest difference of the log-probabilities of answers to questions that share an image, which is computed once, to "
        "transformers' of each whole conversation",
    ),
    "again": Check("again", "tokens of earlier turns that enter the decoder of a chat again", is_count=True),
}


def holds(check: str, figure: float) -> bool:
    """Whether a check's figure is as it has to be."""
    return figure <= (0 if CHECKS[check].is_count else TOLERANCE)


class Reader:
    """A model that reads samples in rows."""

    def __init__(self, model: PublicModel, processor: PublicProcessor) -> None:
        self.model, self.processor = model, processor

    def rows(self, packing: Packing, samples: Sequence[Sample]) -> list[Row]:
        return pack([render_example(sample, self.processor, LONGEST) for sample in samples], packing, LONGEST)

    def batch(self, rows: Sequence[Row]) -> Batch:
        return collate(rows, self.processor, _refuse)

    def logits(self, rows: Sequence[Row]) -> dict[tuple[str, int], torch.Tensor]:
        """(sample, place in it) → logits [K], of rows in one batch; of what samples share, the first's."""
        with torch.no_grad():
            found = self.model.logits(self.batch(rows))
        out: dict[tuple[str, int], torch.Tensor] = {}
        for r, row in enumerate(rows):
            offset = 0
            for segment in row.segments:
                for place in range(segment.start, segment.stop):
                    out[segment.example.sample_id, place] = found[r, offset + place - segment.start]
                offset += segment.length
        return out


class Subject(Reader):
    """A model under trial: its samples rendered, and what transformers alone computes of each."""

    def __init__(self, model: PublicModel, processor: PublicProcessor, trial: Trial) -> None:
        super().__init__(model, processor)
        self.trial = trial
        self.examples = {sample.id: render_example(sample, processor, LONGEST) for sample in trial.samples}
        self.inputs = {s.id: peers_inputs(model.peer, processor.peer, s) for s in trial.samples}
        with torch.no_grad():
            self.expected = {name: peers_logits(model.peer, inputs) for name, inputs in self.inputs.items()}

    def difference(self, found: Mapping[tuple[str, int], torch.Tensor]) -> float:
        """The largest to what transformers computes of each sample alone."""
        return max(_largest(logits - self.expected[name][place]) for (name, place), logits in found.items())


def _refuse(error: BadSampleError) -> None:
    raise error


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def check_tokens(subject: Subject) -> float:
    theirs = {name: inputs["input_ids"][0].tolist() for name, inputs in subject.inputs.items()}
    pairs = [(list(own.tokens.input_ids), theirs[name]) for name, own in subject.examples.items()]
    return sum(
        abs(len(ours) - len(other)) + sum(a != b for a, b in zip(ours, other, strict=False)) for ours, other in pairs
    )


def check_labels(subject: Subject) -> float:
    return sum(_answers(subject, example) != _words(sample) for sample, example in _each(subject))


def _each(subject: Subject) -> Iterator[tuple[Sample, Example]]:
    return ((sample, subject.examples[sample.id]) for sample in subject.trial.samples)


def _answers(subject: Subject, example: Example) -> list[str]:
    """What the supervised stretches decode to, without the special token that ends each."""
    stretches: list[list[int]] = [[]]
    for token, flag in zip(example.tokens.input_ids, example.tokens.supervised, strict=True):
        if flag:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    decode = subject.processor.tokenizer.decode
    return [decode(own, skip_special_tokens=True) for own in stretches if own]


def _words(sample: Sample) -> list[str]:
    return [message.text for message in sample.messages if message.role == "assistant"]


def check_prompts(subject: Subject) -> float:
    wrong = 0
    for sample, example in _each(subject):
        prompt = subject.processor.render(
            sample.messages[:1],
            subject.processor.read_sizes(sample.messages[:1], sample.images),
            generation=True,
        ).input_ids
        wrong += example.tokens.input_ids[: len(prompt)] != prompt
    return wrong


def check_alone(subject: Subject) -> float:
    return max(subject.difference(subject.logits(subject.rows("none", [s]))) for s in subject.trial.samples)


def check_packed(subject: Subject) -> float:
    return subject.difference(subject.logits(subject.rows("samples", subject.trial.samples)))


def check_branches(subject: Subject) -> float:
    return subject.difference(subject.logits(subject.rows("shared_prefix", subject.trial.sharing)))


def check_batch(subject: Subject) -> float:
    together = subject.logits(subject.rows("none", subject.trial.samples))
    return max(
        _largest(logits - together[key])
        for sample in subject.trial.samples
        for key, logits in subject.logits(subject.rows("none", [sample])).items()
    )


def check_isolated(subject: Subject) -> float:
    """Infinite where the change changed nothing, which would say nothing of the neighbours."""
    first, *others = subject.trial.samples
    before = subject.logits(subject.rows("samples", subject.trial.samples))
    after = subject.logits(subject.rows("samples", [subject.trial.changed, *others]))
    moved = {key: _largest(logits - after[key]) for key, logits in before.items()}
    if not any(moved[key] for key in moved if key[0] == first.id):
        return math.inf
    return max(moved[key] for key in moved if key[0] != first.id)


def check_text(subject: Subject) -> float:
    words = [sample for sample in subject.trial.samples if not sample.images]
    found = subject.logits(subject.rows("none", words))
    return subject.difference({key: logits for key, logits in found.items() if key[0] in subject.expected})


def gradients(subject: Subject) -> tuple[float, float]:
    """The largest difference of packed gradients to transformers', and how many tensors learn there and not here."""
    peer = subject.model.peer
    with _all_learn(subject.model):
        for name, example in subject.examples.items():
            logits = peers_logits(peer, subject.inputs[name])
            summed_loss(logits, example.tokens.input_ids, example.tokens.supervised).backward()
        theirs = {name: p.grad.clone() for name, p in peer.named_parameters() if p.grad is not None}
        subject.model.zero_grad()
        subject.model(subject.batch(subject.rows("samples", subject.trial.samples))).backward()
        ours = {name: p.grad for name, p in peer.named_parameters() if p.grad is not None}
        learning = [name for name, gradient in theirs.items() if gradient.any()]
        idle = {id(parameter) for parameter in subject.model.unused_parameters()}
        frozen = {name for name, parameter in peer.named_parameters() if id(parameter) in idle}
        unlearned = sum(name in frozen or name not in ours or not ours[name].any() for name in learning)
        shared = [name for name in theirs if name in ours]
        worst = max(_largest(ours[name] - theirs[name]) / max(1.0, _largest(theirs[name])) for name in shared)
    return worst, float(unlearned)


@contextmanager
def _all_learn(model: PublicModel) -> Iterator[None]:
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        model.requires_grad_(True).zero_grad()
        yield
    finally:
        model.zero_grad()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def check_saved(subject: Subject) -> float:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        public.write(directory, subject.model, subject.processor, subject.model.state_dict())
        again = Reader(*public.load(directory))
        rows = again.rows("samples", subject.trial.samples)
        before = subject.logits(subject.rows("samples", subject.trial.samples))
        return max(_largest(logits - before[key]) for key, logits in again.logits(rows).items())


def check_shared(subject: Subject) -> float:
    return shared(subject.model, subject.processor, subject.trial.samples[0].images[0])


def turns(subject: Subject) -> dict[str, float]:
    """What a chat differs by, in three questions: about an image, without one, and about another."""
    first, *_, several = subject.trial.samples
    asked = [("what is this?", first.images), ("and what else?", ()), ("and this?", several.images[:1])]
    found = chat(subject.model, subject.processor, asked)
    return {"turns": found.difference, "chat": found.wrong, "again": found.again}


SINGLE: dict[str, Callable[[Subject], float]] = {
    "tokens": check_tokens,
    "labels": check_labels,
    "prompts": check_prompts,
    "alone": check_alone,
    "packed": check_packed,
    "isolated": check_isolated,
    "branches": check_branches,
    "batch": check_batch,
    "text": check_text,
    "saved": check_saved,
    "shared": check_shared,
}


def measured(subject: Subject) -> dict[str, float]:
    """The figure of each of CHECKS."""
    figures = {name: float(check(subject)) for name, check in SINGLE.items()}
    figures["gradients"], figures["unlearned"] = gradients(subject)
    figures |= turns(subject)
    return {name: figures[name] for name in CHECKS}
