"""What a question is shown with: its own images and videos, and the controls beside that."""

CONDITIONS = ("model", "withheld", "swapped")
FURTHER_CONDITIONS = {
    "single": "with the first of its images alone",
    "shuffled": "with the frames of its videos in another order",
}
ALL_CONDITIONS = (*CONDITIONS, *FURTHER_CONDITIONS)
