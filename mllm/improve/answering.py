"""The first two arrows of a round: prompts become answers, and answers become rewards. Each is a file of JSON lines.

A line is on the disk before the next prompts are asked, so that a round that was stopped goes on behind its last line.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm.data.dataset import Mixture
from mllm.errors import BadSampleError, UserError
from mllm.improve.settings import ImproveSettings
from mllm.inference.decoding import Decoding
from mllm.inference.sampling import seed_of
from mllm.media.ref import is_stored
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor
from mllm.rewards.asked import Asked, ask
from mllm.rewards.sampled import answers_to
from mllm.rewards.scoring import Rewards

logger = logging.getLogger(__name__)

CHUNK_PROMPTS = 64
Opened = tuple[VisionLanguageModel, Processor]


def prompts_of_round(mixture: Mixture, first: int, count: int) -> list[int]:
    """Indices of the prompts of a round: `count` of the mixture's epochs from place `first` on."""
    length = mixture.epoch_length
    orders: dict[int, list[int]] = {}
    chosen = []
    for place in range(first, first + count):
        epoch, index = divmod(place, length)
        if epoch not in orders:
            orders[epoch] = mixture.order(epoch)
        chosen.append(orders[epoch][index])
    return chosen


def sample_round(
    path: Path,
    settings: ImproveSettings,
    mixture: Mixture,
    number: int,
    chosen: Sequence[int],
    open_model: Callable[[], Opened],
) -> None:
    """Write a line for each prompt of a round to `path`: `{"id", "answers": [{"text", "cut"}]}`, or `{"id", "problem"}`.

    number: of the round. chosen: the indices of its prompts. Those that have a line already aren't asked again, and the model
    is opened only for those that have none.
    """
    done = len(whole_records(path))
    model_and_processor = open_model() if done < len(chosen) else None
    with open(path, "a", encoding="utf-8") as file:
        for start in range(done, len(chosen), CHUNK_PROMPTS):
            assert model_and_processor is not None
            records = _sampled(settings, mixture, number, chosen[start : start + CHUNK_PROMPTS], model_and_processor)
            file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
            file.flush()
            logger.info("round %d: %d of %d prompts are answered", number, start + len(records), len(chosen))


def _sampled(
    settings: ImproveSettings, mixture: Mixture, number: int, indices: Sequence[int], opened: Opened
) -> list[dict[str, Any]]:
    asked: list[Asked | BadSampleError] = [_asked(mixture, index, opened[1]) for index in indices]
    usable = [one for one in asked if isinstance(one, Asked)]
    sampling = settings.sampling
    seeds = [[seed_of(settings.seed, number, one.sample_id, n) for n in range(sampling.answers)] for one in usable]
    decoding = Decoding(max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature)
    answers = iter(answers_to(*opened, usable, seeds, decoding, sampling.batch_size) if usable else [])
    records: list[dict[str, Any]] = []
    for one in asked:
        found = next(answers) if isinstance(one, Asked) else one
        if isinstance(found, BadSampleError):
            if settings.prompts.on_bad_sample == "error":
                raise found
            records.append({"id": found.sample_id, "problem": found.reason})
            continue
        told = [{"text": answer.text, "cut": answer.finish_reason == "length"} for answer in found]
        records.append({"id": one.sample_id, "answers": told})
    return records


def _asked(mixture: Mixture, index: int, processor: Processor) -> Asked | BadSampleError:
    try:
        sample, leaving = mixture.unchecked(index)
        if leaving:
            raise sample.bad("image", next(iter(leaving.values())))
        inside = next((image for image in sample.images if is_stored(image)), None)
        if inside is not None:
            reason = (
                f"its image {inside!r} lies inside a file, and pairs name files; lay them out with mllm data convert"
            )
            raise sample.bad("image", reason)
        return ask(sample, processor)
    except BadSampleError as error:
        return error


def verify_round(
    path: Path,
    answers: Sequence[Mapping[str, Any]],
    asked: Callable[[int], Asked],
    processor: Callable[[], Processor],
    rewards: Callable[[], Rewards],
) -> None:
    """Write a line for each prompt of the round to `path`: `{"id", "rewards", "parts"}`, a reward for each answer.

    answers: the lines of `sample_round`. asked: the prompt at a place of the round. processor, rewards: called if any rewards
    are to be given.
    """
    done = len(whole_records(path))
    if done == len(answers):
        return
    given = rewards()
    try:
        with open(path, "a", encoding="utf-8") as file:
            for start in range(done, len(answers), CHUNK_PROMPTS):
                lines = list(
                    _verified(
                        answers, range(start, min(start + CHUNK_PROMPTS, len(answers))), asked, processor(), given
                    )
                )
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
                file.flush()
    finally:
        given.close()


def _verified(
    answers: Sequence[Mapping[str, Any]],
    places: range,
    asked: Callable[[int], Asked],
    processor: Processor,
    rewards: Rewards,
) -> Iterator[dict[str, Any]]:
    told = {place: [answer["text"] for answer in answers[place].get("answers", ())] for place in places}
    attempts = [
        prompt.attempt(text, processor, rewards.reads_places)
        for place, texts in told.items()
        if texts
        for prompt in [asked(place)]
        for text in texts
    ]
    scored = iter(rewards(attempts))
    for place, texts in told.items():
        own = [next(scored) for _ in texts]
        yield {"id": answers[place]["id"], "rewards": [s.total for s in own], "parts": [s.parts for s in own]}


def whole_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines; one that was cut short at its end is taken off it. None where there is no file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    try:
        return [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{path} isn't what `mllm improve` writes ({error}); move it away") from None
