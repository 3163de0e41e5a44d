"""Whether facts support or contradict what templates write, found out from the sentences and the raw facts alone."""

import re

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
PLURALS = {"person": "people", "knife": "knives", "sheep": "sheep", "bus": "buses", "box": "boxes", "bench": "benches"}


def _categories(facts):
    return [box["category"].lower() for box in facts["boxes"]]


def _of_number(words, facts):
    """The category that a noun in singular or plural stands for."""
    kinds = set(_categories(facts))
    return next((kind for kind in kinds if words in (kind, PLURALS.get(kind, f"{kind}s"))), None)


def _relation(one, place, other, facts):
    boxes = {box["category"].lower(): box["box"] for box in facts["boxes"]}
    a, b = boxes[one], boxes[other]
    horizontal = place.startswith("to the")
    low, high = (0, 2) if horizontal else (1, 3)
    is_before = place in ("to the left of", "above")
    return a[high] <= b[low] if is_before else b[high] <= a[low]


def is_true(sentence, facts, synonyms):
    """Whether the facts say so; they say all that there is."""
    text = sentence.strip()
    told = " ".join([*facts["captions"], *_categories(facts), *facts["ocr"]]).lower()
    if found := re.fullmatch(r"There (?:is|are) (\w+) (.+)\.", text):
        return _categories(facts).count(_of_number(found[2], facts)) == NUMBERS[found[1]]
    if found := re.fullmatch(r"The (.+) is (to the left of|to the right of|above|below) the (.+)\.", text):
        return _relation(found[1], found[2], found[3], facts)
    if found := re.fullmatch(r"(?s)The text in the image reads “(.+)”\.", text):
        return found[1] in facts["ocr"]
    if found := re.fullmatch(r"(Yes|No), there is (.+) in the image\.", text):
        name = re.sub(r"^(no|an?) ", "", found[2])
        words = [name, *synonyms.get(name, ())]
        return any(re.search(rf"\b{re.escape(word)}(s|es)?\b", told) for word in words) == (found[1] == "Yes")
    captions = {caption.lower().rstrip(".") for caption in facts["captions"]}
    return text.lower().rstrip(".") in captions


def _overlap(one, other):
    xs, ys = (sorted((n, o)) for n, o in ((one[0], other[0]), (one[1], other[1])))
    width, height = min(one[2], other[2]) - xs[1], min(one[3], other[3]) - ys[1]
    shared = width * height if width > 0 and height > 0 else 0
    return shared / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared)


def _changed(chosen, rejected):
    """What stands in the place of what, as two texts, without what both begin and end with."""
    a, b = chosen.split(), rejected.split()
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    strip = lambda words: re.sub(r"^an? ", "", " ".join(words).strip(".").lower())  # noqa: E731
    return strip(a), strip(b)


def fault_of(pair, facts, synonyms):
    """What is wrong with a pair as it is in a file; None where the chosen answer is true and the rejected one isn't."""
    if pair["kind"] == "box":
        name = re.match(r"The (.+) is at", pair["chosen"][0]["text"])[1]
        height, width = facts["height"], facts["width"]
        (place, wrong) = (pair[side][1]["boxes"][0]["box"] for side in ("chosen", "rejected"))
        right = [
            [x1 / width, y1 / height, x2 / width, y2 / height]
            for x1, y1, x2, y2 in (box["box"] for box in facts["boxes"] if box["category"].lower() == name)
        ]
        if max(abs(n - m) for n, m in zip(place, right[0], strict=True)) > 1e-9 or len(right) != 1:
            return "the chosen place is none of the object"
        return None if _overlap(wrong, right[0]) <= 0.5 else "the rejected place is one of the object"
    split = lambda text: re.split(r"(?<=[.”])\s(?=[A-Z])", text)  # noqa: E731
    chosen, rejected = split(pair["chosen"]), split(pair["rejected"])
    if len(chosen) != len(rejected):
        return "the answers have unlike numbers of sentences"
    untrue = [sentence for sentence in chosen if not is_true(sentence, facts, synonyms)]
    if untrue:
        return f"chosen, and the facts don't say it: {untrue[0]}"
    unlike = [pairing for pairing in zip(chosen, rejected, strict=True) if pairing[0] != pairing[1]]
    if len(unlike) != 1:
        return f"{len(unlike)} sentences differ"
    if is_true(unlike[0][1], facts, synonyms):
        return f"rejected, and the facts say it: {unlike[0][1]}"
    if pair["kind"] in ("object", "attribute") and not unlike[0][1].startswith(("Yes,", "No,")):
        new = _changed(*unlike[0])[1]
        told = " ".join([*facts["captions"], *_categories(facts)]).lower()
        if any(re.search(rf"\b{re.escape(word)}(s|es)?\b", told) for word in [new, *synonyms.get(new, ())]):
            return f"the facts speak of {new}"
    return None
