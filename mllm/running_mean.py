"""The mean that follows a noisy curve, in logs, pictures and pages alike."""

SMOOTHED_STEPS = 20


class RunningMean:
    """The mean of about the last `SMOOTHED_STEPS` values: a single step's says more of its samples than of the run.

    It is exponential and counts from the first value, so that its beginning is not held against a zero.
    """

    def __init__(self, total: float = 0.0, weight: float = 0.0) -> None:
        self.total, self.weight = total, weight

    def add(self, value: float) -> float:
        """Take in a value and return the mean."""
        kept = 1 - 1 / SMOOTHED_STEPS
        self.total, self.weight = kept * self.total + value, kept * self.weight + 1
        return self.total / self.weight
