"""Questions about a picture with its caption in the picture's place.

A small language model doesn't know how to hold a question against a description: to "a red circle / is there a blue
shape?" SmolLM2-135M answers at chance. Learned from images alone, the skill waits for features that mean something, and
the features for a skill that reads them. Once it is learned in words, a picture only has to come to read like its caption.
"""

import random

from data_recipes.demo.backend import Backend
from data_recipes.demo.balance import balanced
from data_recipes.demo.samples import Drafted
from mllm.conversation.schema import Message, TextPart
from mllm.data.readers.easyvqa import is_negated

ANSWERED_BY_CAPTION = ("caption", "naming", "category", "reading", "shape", "color", "yes_no")


def in_words(drafts: list[Drafted], backend: Backend, rng: random.Random) -> list[Drafted]:
    """Those of `drafts` whose answer follows from a caption, with the caption where the image was.

    Yes/no questions stay balanced, as many yes as no for each text. Kinds end in `_in_words`; a negated yes/no question
    is of the kind `negated_in_words`, so that a recipe can teach it after the plain ones: from both at once little is
    learned at first, since a match means yes to one and no to the other.
    """
    written = []
    for item in drafts:
        turns = backend.turns("caption", item.picture, rng) if item.sample.kind in ANSWERED_BY_CAPTION else []
        if turns:
            written.append(_in_words(item, turns[0].answer))
    answered = [(_question(item), item.sample.messages[1].text, item) for item in written]
    yes_no = [(question, answer == "yes", item) for question, answer, item in answered if answer in ("yes", "no")]
    kept = [item for _, answer, item in answered if answer not in ("yes", "no")]
    return kept + [item for _, _, item in balanced(yes_no, len(yes_no), rng)]


def _in_words(item: Drafted, caption: str) -> Drafted:
    sample = item.sample
    question = _question(item)
    message = Message(role="user", content=(TextPart(text=f"{caption}\n"), TextPart(text=question)))
    kind = "negated" if sample.kind == "yes_no" and is_negated(question) else sample.kind
    changes = {"id": f"{sample.id}-in-words", "messages": (message, *sample.messages[1:]), "kind": f"{kind}_in_words"}
    return Drafted(item.picture, sample.model_copy(update=changes))


def _question(item: Drafted) -> str:
    last = item.sample.messages[0].content[-1]
    return last.text if isinstance(last, TextPart) else ""
