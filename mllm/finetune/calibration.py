"""What a new projector starts from, before the language model is run: the scale of words, and then their meaning.

T images, P patches, V encoder width, K image tokens of a tile, D language-model width.
"""

import json
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from safetensors import SafetensorError, safe_open
from torch.nn.functional import normalize
from tqdm import tqdm

from mllm.data.dataset import Mixture
from mllm.errors import UserError
from mllm.media.decode import read_image
from mllm.model.encoders import VisionEncoder
from mllm.model.fused_encoder import FusedEncoder
from mllm.model.projectors import Projector
from mllm.model.settings import ProjectorSettings
from mllm.processor import Processor

logger = logging.getLogger(__name__)

Tokenize = Callable[[str], Sequence[int]]

_WORD = re.compile(r"\w+")

ENCODED_TOGETHER = 16
# Images and tokens of each in a step that learns words, the factor of their similarities, and AdamW's highest rate.
IMAGES = 128
TOKENS = 4
SIMILARITY_SCALE = 20.0
RATE = 2e-3
WARMUP_STEPS = 20
# Share of an image's feature channels that are hidden in a step: a few thousand images are soon known by heart.
HIDDEN_SHARE = 0.5


def calibrate_projector(
    projector: Projector,
    encoder: VisionEncoder | FusedEncoder,
    embeddings: torch.Tensor,
    processor: Processor,
    mixture: Mixture,
    settings: ProjectorSettings,
) -> None:
    """Set a new projector's scale on `calibration_images` of the mixture's images, and then let it learn words on them.

    embeddings: the language model's, [words, D]. Fewer images are taken if there are no more; which, is drawn by the
    mixture's seed. Images that can't be decoded, or lie outside their root, are passed over; training reports them. Raises
    UserError when none is left, and when words can't be learned because no answer is about one image.
    """
    paths = mixture.images()
    random.Random(f"{mixture.seed}/calibration").shuffle(paths)
    wanted = min(settings.calibration_images, len(paths))
    readable = islice(_readable(paths, processor, mixture), wanted)
    shown, encoded = list[str](), list[torch.Tensor]()
    with torch.no_grad(), tqdm(total=wanted, desc="calibration", unit="image", disable=None) as progress:
        while batch := list(islice(readable, ENCODED_TOGETHER)):
            shown += [path for path, _ in batch]
            encoded.append(encoder(torch.stack([pixels for _, pixels in batch])).float())
            progress.update(len(batch))
    if not shown:
        raise UserError(
            "model.projector.calibration_images: the recipe has no readable image to calibrate on; set it to 0"
        )
    features = torch.cat(encoded)
    projector.calibrate(features, embeddings)
    if settings.word_epochs:
        answers = answers_about_one(mixture)
        told = [index for index, path in enumerate(shown) if path in answers]
        if not told:
            raise UserError("model.projector.word_epochs: no answers are about one of its images each; set it to 0")
        texts = [answers[shown[index]] for index in told]
        _teach(projector, features[told], texts, embeddings, processor, settings, mixture.seed)


def _teach(
    projector: Projector,
    features: torch.Tensor,
    texts: Sequence[str],
    embeddings: torch.Tensor,
    processor: Processor,
    settings: ProjectorSettings,
    seed: int,
) -> None:
    """Let the projector learn the words of images, of which `features` and `texts` are, and those of `word_features`."""
    count = len(texts)
    if settings.word_features is not None:
        of_words, further = read_word_features(settings.word_features, features.shape[2])
        features, texts = torch.cat([features, placed(of_words, features)]), [*texts, *further]

    def tokenize(word: str) -> list[int]:
        return list(processor.tokenizer.encode(f" {word}", add_special_tokens=False))

    words = words_of(texts, embeddings, tokenize)
    loss = learn_words(projector, features, words, embeddings, settings.word_epochs, seed)
    logger.info("the projector learned the words of %d images, loss %.2f", count, loss)


def read_word_features(path: str, width: int) -> tuple[torch.Tensor, list[str]]:
    """Read features, float32 [N, V], and the words of each from a safetensors file: `features`, and a JSON list `words`.

    The list is in the file's metadata. Raises UserError where it isn't there, or isn't of such features.
    """
    try:
        with safe_open(path, "pt") as file:
            features = file.get_tensor("features").float()
            words = json.loads((file.metadata() or {})["words"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"model.projector.word_features: {path} holds no features with words: {error}") from None
    if not all(isinstance(word, str) and _WORD.search(word) for word in words):
        raise UserError(f"model.projector.word_features: {path} names a feature without a word")
    if features.shape != (len(words), width):
        raise UserError(
            f"model.projector.word_features: {path} holds features {list(features.shape)} with {len(words)} words; this "
            f"encoder's are {width} wide"
        )
    return features, words


def placed(of_words: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """[N, V] → [N, P, V]: a word's feature at every place, with the differences between places that an image has.

    features: [T, P, V] of images, which lend their differences in turn.
    """
    differences = features - features.mean(1, keepdim=True)
    return of_words[:, None] + differences[torch.arange(len(of_words)) % len(features)]


def _readable(paths: Sequence[str], processor: Processor, mixture: Mixture) -> Iterator[tuple[str, torch.Tensor]]:
    for path in paths:
        if not mixture.holds_image(path):
            continue
        try:
            yield path, processor.pixels(read_image(path))
        except UserError:
            continue


def answers_about_one(mixture: Mixture) -> dict[str, str]:
    """Image → the answers of the samples that show it alone, one after another, where they have a word."""
    answers: dict[str, list[str]] = {}
    for index in range(len(mixture.samples)):
        sample, _ = mixture.unchecked(index)
        if len(sample.images) == 1:
            answers.setdefault(sample.images[0], []).append(" ".join(m.text for m in sample.messages[1::2]))
    joined = {image: " ".join(told) for image, told in answers.items()}
    return {image: text for image, text in joined.items() if _WORD.search(text)}


@dataclass(frozen=True)
class Words:
    """The words of some texts.

    directions: float32 [words, D] of each word's embedding, less the mean of all, at length one. own: int64 [texts, k], the
    words of each text, the last repeated where it has fewer than k. shares: float32 [texts, k], what each counts; a text's
    add up to 1.
    """

    directions: torch.Tensor
    own: torch.Tensor
    shares: torch.Tensor


def words_of(texts: Sequence[str], embeddings: torch.Tensor, tokenize: Tokenize) -> Words:
    """Find the words of texts, each of which has at least one; a word counts the more the fewer texts it is in.

    embeddings: [tokens, D]; a word of several tokens is their mean. The weight is inverse document frequency (Sparck Jones
    1972), ln(1 + texts / texts with the word), so that articles and what all captions say count little.
    """
    split = [list(dict.fromkeys(_WORD.findall(text.lower()))) for text in texts]
    frequency = Counter(word for words in split for word in words)
    places = {word: place for place, word in enumerate(sorted(frequency))}
    means = torch.stack([embeddings[list(tokenize(word))].float().mean(0) for word in places])
    longest = max(len(words) for words in split)
    own = torch.tensor([[places[w] for w in words] + [places[words[-1]]] * (longest - len(words)) for words in split])
    weights = [
        [math.log(1 + len(texts) / frequency[w]) for w in words] + [0.0] * (longest - len(words)) for words in split
    ]
    shares = torch.tensor(weights)
    return Words(normalize(means - embeddings.float().mean(0), dim=1), own, shares / shares.sum(1, keepdim=True))


def learn_words(
    projector: Projector, features: torch.Tensor, words: Words, embeddings: torch.Tensor, epochs: int, seed: int
) -> float:
    """Let the projector tell each image's words from all others, and return the last step's loss, in nats.

    features: [T, P, V]. The loss is cross-entropy over all words, of which a token's are those of its image, by the cosine of
    token and word, both less the mean word; each step takes some tokens of some images. Half of the channels are hidden at
    their mean, others in each step (Srivastava et al. 2014). Tokens are held at the distance from the mean word that words
    have.
    """
    neutral = embeddings.float().mean(0)
    distance = (embeddings.float() - neutral).norm(dim=1).mean()
    middle = projector.feature_mean
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=RATE, weight_decay=0.1)
    batches = [
        batch for _ in range(epochs) for batch in torch.randperm(len(features), generator=generator).split(IMAGES)
    ]
    loss = torch.tensor(0.0)
    with torch.enable_grad():
        for step, batch in enumerate(tqdm(batches, desc="words", unit="step", disable=None)):
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / len(batches))
            kept = torch.rand(features[batch].shape, generator=generator) >= HIDDEN_SHARE
            shown = middle + (features[batch] - middle) * kept / (1 - HIDDEN_SHARE)
            tokens = projector.project(shown) - neutral
            some = torch.randperm(tokens.shape[1], generator=generator)[:TOKENS]
            scores = SIMILARITY_SCALE * normalize(tokens[:, some], dim=2) @ words.directions.T
            told = scores.gather(2, words.own[batch][:, None].expand(-1, len(some), -1))
            loss = (scores.logsumexp(2) - (told * words.shares[batch][:, None]).sum(2)).mean()
            (loss + (tokens.norm(dim=2) / distance - 1).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return loss.item()
