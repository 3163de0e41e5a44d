"""What a metric makes of records."""

from mllm.evaluation.benchmarks import build_metric
from mllm.evaluation.metric import parse_line


def result_of(name, records, **settings):
    metric = build_metric(name, settings)
    return metric.score([parse_line(metric.line, record, f"line {i}") for i, record in enumerate(records, 1)])
