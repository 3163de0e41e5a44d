"""What a question is shown with: its own images and videos, and the controls beside that."""

CONDITIONS = ("model", "withheld", "swapped")
INJECTIONS = ("injected", "scrawled")
CONTRASTS = ("contrasted", "contrast_0")
FURTHER_CONDITIONS = {
    "single": "with the first of its images alone",
    "shuffled": "with the frames of its videos in another order",
    "blurred": "with the image blurred",
    "grey": "with the image in shades of grey",
    "mirrored": "with the image mirrored, left and right exchanged in the words",
    "injected": "with an order to give a wrong answer written into the image",
    "scrawled": "with the strokes of that order in disorder",
    "contrasted": "by logits that are contrasted with those of a rival conversation",
    "contrast_0": "the same with α = 0: what its cut of unlikely tokens does alone",
}
ALL_CONDITIONS = (*CONDITIONS, *FURTHER_CONDITIONS)
