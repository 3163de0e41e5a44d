"""The backend without a model: sentences made of captions, boxes and text, by the rules of each kind."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from mllm.synthesis.backends.base import Answered, Completion, Prompt
from mllm.synthesis.context import Box, Context
from mllm.synthesis.grounding import named_place
from mllm.synthesis.parsing import Turns, as_blocks
from mllm.synthesis.statements import alone, count_turns, plural, relation_turns, sentence, with_article
from mllm.synthesis.swaps import SWAPS, Scene, described

DESCRIBED = 0.5  # share of wrong statements that stand among right ones, where there are any


class TemplateBackend:
    """Writes only what the facts state; an answer with no turns where they don't suffice."""

    concurrency = 1
    batch_size = 64
    identity = "template-1"
    kinds: frozenset[str] | None = frozenset(
        (
            *("conversation", "detail", "short_vqa", "ocr", "absent"),
            *("grounding", "spatial"),
            *("grounded_caption", "region_text", "preference"),
        )
    )
    languages: frozenset[str] | None = frozenset(("en",))
    needs_facts = True
    takes_schema = False

    def spent(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Nothing is paid."""

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return 0.0

    async def complete(self, prompts: Sequence[Prompt]) -> list[Answered]:
        return [Completion(as_blocks(_WRITERS[p.kind](p, random.Random(p.seed)))) for p in prompts]

    async def close(self) -> None:
        """Nothing is open."""


def _conversation(prompt: Prompt, rng: random.Random) -> Turns:
    context = prompt.context
    what = rng.choice(("What does the image show?", "What can you see?", "What is going on here?"))
    turns = [(what, sentence(context.captions[0]))] if context.captions else []
    turns += count_turns(context, rng)[:1] + relation_turns(context, rng)[:1]
    turns += [("Is there any text in the image?", f"Yes, it says “{context.ocr[0]}”.")] if context.ocr else []
    return turns


def _detail(prompt: Prompt, rng: random.Random) -> Turns:
    context = prompt.context
    parts = [sentence(caption) for caption in context.captions]
    parts += [answer for _, answer in count_turns(context, rng) + relation_turns(context, rng)[:2]]
    parts += [f"The text in it reads “{text}”." for text in context.ocr]
    return [("Describe the image in detail.", " ".join(parts))] if len(parts) > 1 else []


def _short_vqa(prompt: Prompt, rng: random.Random) -> Turns:
    counts = Counter(box.category.lower() for box in prompt.context.boxes)
    turns = [(f"How many {plural(name)} are there?", str(count)) for name, count in sorted(counts.items())]
    rng.shuffle(turns)
    return turns[:3]


def _ocr(prompt: Prompt, rng: random.Random) -> Turns:
    texts = prompt.context.ocr
    question = rng.choice(
        ("What does the text in the image say?", "Read the text in the image.", "What is written here?")
    )
    return [(question, "\n".join(texts))] if texts else []


def _grounding(prompt: Prompt, rng: random.Random) -> Turns:
    single = alone(prompt.context)
    rng.shuffle(single)
    return [
        (f"Where is the {box.category.lower()}?", f"The {box.category.lower()} is at {_place(prompt.context, box)}.")
        for box in single[:3]
    ]


def _grounded_caption(prompt: Prompt, rng: random.Random) -> Turns:
    """The first caption that names an object of which there is one, with the place of each that it names once."""
    context = prompt.context
    for caption in context.captions:
        grounded = caption
        for box in alone(context):
            named = list(re.finditer(rf"\b{re.escape(box.category)}\b", grounded, re.IGNORECASE))
            if len(named) == 1:
                start, end = named[0].span()
                grounded = grounded[:start] + named_place(grounded[start:end], _place(context, box)) + grounded[end:]
        if grounded != caption:
            question = rng.choice(("Describe the image, and say where things are.", "What is where in the image?"))
            return [(question, sentence(grounded))]
    return []


def _region_text(prompt: Prompt, rng: random.Random) -> Turns:
    boxes = list(prompt.context.boxes)
    rng.shuffle(boxes)
    form = rng.choice(("What is at {}?", "Please provide a short description for this region: {}"))
    return [
        (form.format(_place(prompt.context, box)), sentence(with_article(box.category.lower()))) for box in boxes[:3]
    ]


def _spatial(prompt: Prompt, rng: random.Random) -> Turns:
    return count_turns(prompt.context, rng)[:2] + relation_turns(prompt.context, rng)[:2]


def _absent(prompt: Prompt, rng: random.Random) -> Turns:
    form = rng.choice(("Is there {} in the image?", "Can you see {} in this picture?", "Does the image show {}?"))
    turns = [(form.format(with_article(name)), f"Yes, the image shows {with_article(name)}.") for name in prompt.wanted]
    turns += [(form.format(with_article(name)), f"No, there is no {name} in the image.") for name in prompt.unwanted]
    rng.shuffle(turns)
    return turns


def _preference(prompt: Prompt, rng: random.Random) -> Turns:
    """The question with the right answer, and again with the wrong one."""
    scene = Scene(prompt.context, prompt.wanted, prompt.unwanted)
    swap = rng.choice(list(SWAPS[prompt.sort](scene)))
    swap = described(swap, scene, rng) if swap.is_statement and rng.random() < DESCRIBED else swap
    return [(swap.question, swap.chosen), (swap.question, swap.rejected)]


_WRITERS: dict[str, Callable[[Prompt, random.Random], Turns]] = {
    "conversation": _conversation,
    "detail": _detail,
    "short_vqa": _short_vqa,
    "ocr": _ocr,
    "grounding": _grounding,
    "grounded_caption": _grounded_caption,
    "region_text": _region_text,
    "spatial": _spatial,
    "absent": _absent,
    "preference": _preference,
}


def _place(context: Context, box: Box) -> str:
    assert context.size_px is not None, context.id
    return box.place(context.size_px)
