"""How the code is laid out: sizes of files and functions, circles of imports, and how many modules a reader walks through.

    python benchmarks/house.py
    python benchmarks/house.py --tree ../before --tree . --no-walks

Several trees are columns of one table. Sizes are of `mllm/`; complexity is McCabe's with conditional expressions, `and`, `or`
and comprehensions counted. A circle is a set of files that import each other, also by imports within functions. The walks
(`walks.py`) run in each tree on tiny models, on the CPU.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

WALKS = Path(__file__).with_name("walks.py")
SMALL_LINES = 50
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.match_case)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def percentile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def complexity(function: ast.AST) -> int:
    """McCabe's number of a function, inner functions included."""
    count = 1
    for node in ast.walk(function):
        count += isinstance(node, BRANCHES)
        count += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
    return count


def import_statements(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Those of a file, wherever they stand. Expressions, which are most of a tree, are passed over: they hold none."""
    found: list[ast.AST] = [tree]
    while found:
        node = found.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            found += getattr(node, part, [])


def imports(path: Path, tree: ast.Module, modules: dict[str, Path]) -> Iterator[Path]:
    """The files of `modules` (by dotted name) that a file imports anywhere in it: of `from a import b`, b where it is one."""
    for node in import_statements(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.module and not node.level:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in inner]
        yield from (modules[name] for name in names if name in modules and modules[name] != path)


def circles(graph: dict[Path, set[Path]]) -> list[list[Path]]:
    """Sets of more than one file in which each reaches each (Kosaraju)."""
    order: list[Path] = []
    seen: set[Path] = set()

    def visit(start: Path, edges: dict[Path, set[Path]]) -> list[Path]:
        """The files reached from `start` and not seen before, each after those that it leads to."""
        found, stack = [], [(start, iter(sorted(edges[start])))]
        seen.add(start)
        while stack:
            here, rest = stack[-1]
            step = next((other for other in rest if other not in seen), None)
            if step is None:
                found.append(here)
                stack.pop()
            else:
                seen.add(step)
                stack.append((step, iter(sorted(edges[step]))))
        return found

    for path in sorted(graph):
        if path not in seen:
            order += visit(path, graph)
    back: dict[Path, set[Path]] = {path: set() for path in graph}
    for path, targets in graph.items():
        for target in targets:
            back[target].add(path)
    seen.clear()
    groups = [visit(path, back) for path in reversed(order) if path not in seen]
    return [sorted(group) for group in groups if len(group) > 1]


@cache
def parsed(folder: Path) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}


def circles_of(root: Path) -> list[list[Path]]:
    """The circles of imports among the files of `root/mllm`."""
    trees = parsed(root / "mllm")
    modules = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in trees}
    return circles({path: set(imports(path, tree, modules)) for path, tree in trees.items()})


def static_figures(root: Path) -> dict[str, int | float]:
    """Of the files below `root/mllm` and `root/tests`, without running them."""
    trees = parsed(root / "mllm")
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in trees]
    small = sum(count < SMALL_LINES for count in lines)
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    complexities = [complexity(node) for node in functions]
    found = circles_of(root)
    nodes = [node for tree in parsed(root / "tests").values() for node in ast.walk(tree)]
    return {
        "files": len(lines),
        "lines": sum(lines),
        "lines of a file: median": median(lines),
        "lines of a file: p90": percentile(lines, 0.9),
        "lines of a file: max": max(lines),
        f"files under {SMALL_LINES} lines": small,
        f"files under {SMALL_LINES} lines, %": round(100 * small / len(lines)),
        "import circles": len(found),
        "files in import circles": sum(map(len, found)),
        "functions": len(functions),
        "lines of a function: median": median(lengths),
        "lines of a function: p90": percentile(lengths, 0.9),
        "lines of a function: max": max(lengths),
        "complexity: p90": percentile(complexities, 0.9),
        "complexity: max": max(complexities),
        "test functions": sum(isinstance(n, FUNCTIONS) and n.name.startswith("test_") for n in nodes),
        "assert statements in tests": sum(isinstance(node, ast.Assert) for node in nodes),
        "pytest.raises in tests": sum(isinstance(n, ast.Attribute) and n.attr == "raises" for n in nodes),
    }


def walked_figures(root: Path) -> dict[str, int | float]:
    """What `walks.py` counts in a tree. Raises RuntimeError with the end of its log when a walk fails."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "walks.json"
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(WALKS), str(output)]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"walks.py failed in {root}:\n{done.stderr[-3000:]}")
        found: dict[str, int | float] = json.loads(output.read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tree", type=Path, action="append", help="a checkout; repeat it for a column each (default: .)"
    )
    parser.add_argument("--no-walks", action="store_true", help="leave out what has to be run (default: run it)")
    parser.add_argument(
        "--circles", action="store_true", help="also list the files of each circle (default: count them)"
    )
    options = parser.parse_args()
    roots = [path.resolve() for path in options.tree or [Path()]]
    columns = [static_figures(root) | ({} if options.no_walks else walked_figures(root)) for root in roots]
    rows = [[name, *(f"{column.get(name, '–')}" for column in columns)] for name in columns[-1]]
    print("| figure |" + "".join(f" {root.name} |" for root in roots))
    print("| --- |" + " ---: |" * len(roots))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    for root in roots if options.circles else ():
        for circle in circles_of(root):
            print(f"{root.name}: " + ", ".join(str(path.relative_to(root)) for path in circle))


if __name__ == "__main__":
    main()
