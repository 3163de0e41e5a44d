"""What a metric makes of records."""

from mllm.evaluation.metric import parse_line
from mllm.evaluation.metrics import build_metric


def result_of(name, records, **settings):
    metric = build_metric(name, settings)
    return metric.score([parse_line(metric.line, record, f"line {i}") for i, record in enumerate(records, 1)])
