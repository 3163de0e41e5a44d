"""Results as the papers have them: a column for each number of shots, for base, new and their H, or for each domain."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from mllm.studies.adapt.run import BASE, NEW, Result, harmonic_mean

Table = tuple[list[str], list[list[str]]]
COSTS = ("fit s", "fit MiB")


def table(results: Sequence[Result]) -> Table:
    """Return the head and the rows. Figures are percent, mean ± standard deviation of the seeds."""
    tests = list(dict.fromkeys(result.test for result in results))
    if set(tests) <= {BASE, NEW}:
        return _by_test(results, [BASE, NEW], "H")
    if len(tests) > 1:
        return _by_test(results, tests, "mean")
    counts = sorted({result.shots for result in results})
    rows = []
    for method in dict.fromkeys(result.method for result in results):
        found = {result.shots: result for result in results if result.method == method}
        rows.append(
            [
                method,
                *(percent(found[c].accuracies) if c in found else "" for c in counts),
                *_costs(list(found.values())),
            ]
        )
    return ["method", *(f"{count} shot{'s' if count > 1 else ''}" for count in counts), *COSTS], rows


def _by_test(results: Sequence[Result], tests: Sequence[str], last: str) -> Table:
    rows = []
    for method, shots in dict.fromkeys((result.method, result.shots) for result in results):
        found = {r.test: r for r in results if (r.method, r.shots) == (method, shots)}
        row = [method, str(shots), *(percent(found[test].accuracies) if test in found else "" for test in tests)]
        if len(found) < len(tests):
            row.append("")
        elif last == "H":
            row.append(f"{100 * harmonic_mean(found[BASE].accuracy, found[NEW].accuracy):.1f}")
        else:
            row.append(f"{100 * mean(result.accuracy for result in found.values()):.1f}")
        rows.append([*row, *_costs(list(found.values()))])
    return ["method", "shots", *tests, last, *COSTS], rows


def robust_table(results: Sequence[Result]) -> Table:
    """Return accuracy as it is and under each attack, a row for each method, number of shots and test set."""
    attacks = list(results[0].robust)
    rows = [
        [r.method, str(r.shots), r.test, percent(r.accuracies), *(percent(r.robust[attack]) for attack in attacks)]
        for r in results
    ]
    return ["method", "shots", "test", "natural", *attacks], rows


def _costs(results: Sequence[Result]) -> list[str]:
    """Return the dearest fit's."""
    memories = [result.memory_mib for result in results if result.memory_mib is not None]
    return [f"{max(result.fit_s for result in results):.1f}", f"{max(memories):.0f}" if memories else "–"]


def percent(values: Sequence[float]) -> str:
    result = Result("", 0, "", tuple(values), {}, 0.0, None)
    return f"{100 * result.accuracy:.1f}" + (f" ± {100 * result.deviation:.1f}" if len(values) > 1 else "")


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [asdict(result) | {"accuracy": result.accuracy, "deviation": result.deviation} for result in results]
