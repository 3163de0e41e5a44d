"""easy-VQA as a source: its real questions, verbatim, and captions of the shapes."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from data_recipes.demo.drafts import Drafted, SourceOutput, draft, pair_captions, pairs_per_text
from data_recipes.demo.phrases import Turn, write_turns
from data_recipes.demo.picture import Picture
from data_recipes.demo.settings import EasyVqaSource
from mllm.data.readers.easyvqa import EasyVqaQuestion, Split, describe_shape, read_easyvqa
from mllm.synthesis.prompts import seeded_random

Questions = dict[str, list[EasyVqaQuestion]]


@dataclass
class LoadedEasyVqa:
    config: EasyVqaSource
    train: list[Picture]
    test: list[Picture]
    questions: Questions
    filtered: Counter[str] = field(default_factory=Counter)

    def write(self, train: list[Picture], seed: int) -> SourceOutput:
        output = SourceOutput()
        name = self.config.name
        described = [p for p in train if p.shape and p.color]
        self.filtered["shape_or_color_unknown"] = len(train) - len(described)
        rng = seeded_random(seed, name, "captions")
        for picture in rng.sample(described, min(self.config.caption_count, len(described))):
            turns = write_turns("caption", picture, rng)
            output.captions.append(draft(picture, f"{name}-caption-{picture.key}", "caption", turns))
        output.instruct = self._questions(train, seed)
        output.clip_pairs = pair_captions(train, seed)
        output.heldout_clip_pairs = pair_captions(self.test, seed)
        output.requested = Counter(
            caption=self.config.caption_count,
            yes_no=self.config.yes_no_count,
            shape=self.config.shape_count,
            color=self.config.color_count,
        )
        return output

    def _questions(self, train: list[Picture], seed: int) -> list[Drafted]:
        pictures = {p.key: p for p in train}
        questions = {key: self.questions[key] for key in pictures}
        counts = {"shape": self.config.shape_count, "color": self.config.color_count}
        drafted = []
        for key, question in select_questions(questions, self.config.yes_no_count, counts, seed):
            turn = Turn(question.question, question.answer, question.type)
            sample_id = f"{self.config.name}-{question.id}"
            drafted.append(draft(pictures[key], sample_id, question.type, [turn]))
        return drafted


def select_questions(
    questions: Questions, yes_no_count: int, other_counts: dict[str, int], seed: int
) -> list[tuple[str, EasyVqaQuestion]]:
    """(image key, question) pairs: yes = no for each yes/no text, on as few images as that allows.

    Images with many answers of their text's rarer kind come first, and everything else is asked of those images:
    questions that share an image are trained on together, which costs little more than one.
    """
    by_answer = Counter((q.question, q.answer) for asked in questions.values() for q in asked if q.type == "yes_no")
    texts = {text for text, _ in by_answer}
    rarer = {text: min(("yes", "no"), key=lambda answer: by_answer[text, answer]) for text in texts}
    pairs = pairs_per_text({text: by_answer[text, rarer[text]] for text in texts}, yes_no_count)
    left = Counter({(text, answer): pairs[text] for text in texts for answer in ("yes", "no")})

    rng = seeded_random(seed, "easyvqa", "images")
    order = sorted(questions)
    rng.shuffle(order)
    order.sort(key=lambda key: -sum(rarer.get(q.question) == q.answer for q in questions[key]))

    chosen: dict[str, list[EasyVqaQuestion]] = defaultdict(list)
    for wants_rarer in (True, False):
        for key in sorted(order, key=lambda key: key not in chosen):
            for q in questions[key]:
                is_wanted = q.type == "yes_no" and (rarer[q.question] == q.answer) == wants_rarer
                if is_wanted and left[q.question, q.answer]:
                    left[q.question, q.answer] -= 1
                    chosen[key].append(q)
    for kind, count in other_counts.items():
        ordered = sorted(order, key=lambda key: key not in chosen)
        of_kind = [(key, q) for key in ordered for q in questions[key] if q.type == kind]
        for image_key, q in of_kind[:count]:
            chosen[image_key].append(q)
    return [(key, q) for key in sorted(chosen) for q in chosen[key]]


def load_easyvqa(config: EasyVqaSource, seed: int) -> LoadedEasyVqa:
    """Read both splits. Raises UserError when the data is not there or not as its layout says."""
    train, questions = _load_split(config, "train")
    test, _ = _load_split(config, "test")
    return LoadedEasyVqa(config, train, test, questions)


def _load_split(config: EasyVqaSource, split: Split) -> tuple[list[Picture], Questions]:
    by_image: dict[Path, dict[str, EasyVqaQuestion]] = defaultdict(dict)
    for question in read_easyvqa(config.path, split):
        # Some images are asked the same question twice; a second copy would only upset the balance.
        by_image[question.image_path].setdefault(question.question, question)
    pictures, questions = [], {}
    for path, asked in by_image.items():
        key = f"{split}-{path.stem}"
        questions[key] = list(asked.values())
        shape, color = describe_shape(questions[key])
        pictures.append(Picture(key, config.name, path.read_bytes(), path.suffix, shape=shape, color=color))
    return pictures, questions
