"""What a question is shown with: its own images and videos, and the controls beside that."""

CONDITIONS = ("model", "withheld", "swapped")
INJECTIONS = ("injected", "scrawled")
FURTHER_CONDITIONS = {
    "single": "with the first of its images alone",
    "shuffled": "with the frames of its videos in another order",
    "blurred": "with the image blurred",
    "grey": "with the image in shades of grey",
    "mirrored": "with the image mirrored, left and right exchanged in the words",
    "injected": "with an order to give a wrong answer written into the image",
    "scrawled": "with the strokes of that order in disorder",
}
ALL_CONDITIONS = (*CONDITIONS, *FURTHER_CONDITIONS)
