"""The metrics, one file each: functions from answers and their references to scores, entered in `METRICS`."""

from importlib import import_module
from pkgutil import iter_modules

from mllm.evaluation.metric import METRICS, build_metric

__all__ = ["METRICS", "build_metric"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
