"""`mllm conformance`: whether a model of transformers computes on packed rows what transformers alone computes."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from mllm.commands.arguments import describe
from mllm.errors import EXIT_FAILURE, UserError
from mllm.settings import expanded

if TYPE_CHECKING:
    from mllm.conformance.trying import Conformance


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Compare a model of transformers, packed, branched, batched, saved and loaded, with what transformers alone computes "
        "of each conversation. Exits with 1 when a model that isn't refused differs.",
        "mllm conformance llava",
        "mllm conformance --all --json",
    )
    parser.add_argument(
        "models",
        type=expanded,
        nargs="*",
        metavar="MODEL",
        help="Families by transformers' model_type, which are made tiny with random weights, or model directories.",
    )
    parser.add_argument("--all", action="store_true", help="Try every family of the list.")
    parser.add_argument("--list", action="store_true", help="Print the families of the list and try none.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        action="store_true",
        help="Print a JSON line for each model: family, conforms, refused and the figures.",
    )
    form.add_argument("--markdown", action="store_true", help="Print the results as a page in Markdown.")


def run(options: argparse.Namespace) -> None:
    from mllm.conformance.families import families

    if options.list:
        print("\n".join(families()))
        return
    if bool(options.models) == options.all:
        raise UserError(
            "name families or model directories, or give --all; `mllm conformance --list` names the families"
        )
    results = _try(list(families()) if options.all else options.models, options.json)
    _show(results, options)
    if not all(result.conforms or result.refused for result in results):
        sys.exit(EXIT_FAILURE)


def _try(models: list[str], prints_json: bool) -> "list[Conformance]":
    from tqdm import tqdm
    from transformers.utils import logging

    from mllm.conformance.trying import conformance_of

    logging.disable_progress_bar()  # of files, many to a model
    results = []
    with tqdm(models, unit="model", disable=None if len(models) > 1 else True) as bar:
        for model in bar:
            bar.set_description(model)
            results.append(conformance_of(model))
            if prints_json:
                print(json.dumps(results[-1].line()), flush=True)
    return results


def _show(results: "list[Conformance]", options: argparse.Namespace) -> None:
    from mllm.conformance.table import count_line, page, reasons, table
    from mllm.console import report_console

    if options.json:
        return
    if options.markdown:
        print(page(results), end="")
        return
    console = report_console()
    if any(result.figures for result in results):
        console.print(table([result for result in results if result.figures]))
    for line in reasons(results):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if len(results) > 1:
        console.print(count_line(results))
