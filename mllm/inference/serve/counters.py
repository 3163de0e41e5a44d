"""What `/metrics` tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mllm.inference.answer import Answer
from mllm.inference.serve.batch_queue import BatchQueue

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self, queue: BatchQueue) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("mllm_requests", "Requests by status", ["status"], registry=self.registry)
        self.tokens = Counter("mllm_tokens", "Tokens by kind", ["kind"], registry=self.registry)
        self.latency = Histogram(
            "mllm_request_seconds", "From request to whole answer", buckets=SECONDS, registry=self.registry
        )
        self.first_text = Histogram(
            "mllm_first_text_seconds", "From request to first text", buckets=SECONDS, registry=self.registry
        )
        self.batch_rows = Histogram(
            "mllm_batch_rows", "Answers computed together", buckets=ROWS, registry=self.registry
        )
        waiting = Gauge("mllm_waiting_requests", "Requests in the queue", registry=self.registry)
        waiting.set_function(lambda: queue.waiting)
        running = Gauge("mllm_running_rows", "Answers being written", registry=self.registry)
        running.set_function(lambda: queue.running_rows)
        queue.on_batch = self.batch_rows.observe

    def count(self, answers: list[Answer]) -> None:
        """Add the tokens of a request: of its prompt, those of them that were computed, and those written."""
        self.tokens.labels("prompt").inc(answers[0].prompt_token_count)
        self.tokens.labels("computed").inc(sum(answer.computed_token_count for answer in answers))
        self.tokens.labels("written").inc(sum(len(answer.token_ids) for answer in answers))

    def text(self) -> bytes:
        return generate_latest(self.registry)
