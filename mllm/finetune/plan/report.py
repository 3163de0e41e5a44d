"""A plan as tables for the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mllm.finetune.plan import Plan
from mllm.finetune.plan.data import Lengths
from mllm.finetune.plan.memory import GpuMemory

BAR = 40


def plan_report(plan: Plan) -> RenderableType:
    """Everything that `mllm plan` says of one run."""
    parts: list[RenderableType] = [
        _parts(plan),
        _lengths(plan),
        _packings(plan),
        _memory(plan),
        _totals(plan),
        _host(plan),
        _summary(plan),
    ]
    return Group(Text(plan.run_dir, style="bold"), *parts)


def gigabytes(value: float) -> str:
    """Bytes as a number of GB (10⁹ bytes) with two digits that count."""
    amount = value / 1e9
    return "–" if not value else f"{amount:.3f}" if amount < 1 else f"{amount:.1f}"


def duration(hours: float) -> str:
    """Hours, or minutes and seconds of what is shorter."""
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.1f} minutes" if 60 * hours >= 1 else f"{3600 * hours:.1f} seconds"


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="", header_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _parts(plan: Plan) -> Table:
    table = _table("parameters", "part", "all", "trainable")
    for part in plan.parts:
        table.add_row(part.part, f"{part.total:,}", f"{part.trainable:,}")
    totals = (sum(p.total for p in plan.parts), sum(p.trainable for p in plan.parts))
    table.add_row("all", *(f"{total:,}" for total in totals), style="bold")
    return table


def _lengths(plan: Plan) -> Group:
    data, lengths = plan.data, plan.data.lengths
    title = f"\ntokens per sample, over {data.samples_read:,} samples ({data.steps_read:,} of {data.steps:,} steps)"
    figures = (
        f"min {lengths.minimum}  median {lengths.median:.0f}  mean {lengths.mean:.1f}  "
        f"p90 {lengths.p90}  max {lengths.maximum}"
    )
    skipped = ", ".join(f"{count} {kind}" for kind, count in sorted(data.skipped.items()))
    lines = [title, figures, *_histogram(lengths), *([f"can't be trained on: {skipped}"] if skipped else [])]
    lines += ["", *_images(plan), ""]
    return Group(*(Text(line) for line in lines))


def _images(plan: Plan) -> list[str]:
    """What images become: one line where all are alike."""
    images, largest = plan.data.images, plan.largest_image
    if images is None:
        return ["no images"]
    if images.tokens.minimum == images.tokens.maximum and images.tiles.minimum == images.tiles.maximum:
        return [
            f"images: {images.count:,}, {images.tokens.maximum:,} image tokens in {images.tiles.maximum} tile(s) each"
        ]
    lines = [f"images: {images.count:,}"]
    for name, each in (("tiles", images.tiles), ("image tokens", images.tokens)):
        lines.append(
            f"  {name:<13} min {each.minimum:,}  median {each.median:,.0f}  mean {each.mean:,.1f}  p90 {each.p90:,}  "
            f"max {each.maximum:,}"
        )
    return [
        *lines,
        f"  the largest image would be {largest.token_count:,} image tokens in {largest.tile_count} tile(s)",
    ]


def _histogram(lengths: Lengths) -> list[str]:
    most = max(count for _, _, count in lengths.bins)
    digits = len(str(lengths.bins[-1][1]))
    return [
        f"  {low:>{digits}}–{high:<{digits}} {'█' * round(BAR * count / most):<{BAR}} {count:,}"
        for low, high, count in lengths.bins
    ]


def _packings(plan: Plan) -> Table:
    table = _table(
        "an optimizer step by packing", "packing", "rows", "tokens", "fill", "padding", "micro-batches", "TFLOPs"
    )
    for figures in plan.data.packings:
        table.add_row(
            _own(figures.packing, figures.packing == plan.packing),
            f"{figures.rows:.1f}",
            f"{figures.tokens:,.0f}",
            f"{figures.fill:.0%}",
            f"{figures.padding:.1%}",
            f"{figures.micro_batches}",
            f"{figures.flops / 1e12:,.2f}",
        )
    return table


def _own(name: str, is_own: bool) -> str:
    return f"{name} ◄" if is_own else name


def _engine(stage: int | None) -> str:
    return "torch" if stage is None else f"ZeRO-{stage}"


def _memory(plan: Plan) -> Table:
    largest = plan.rows.largest
    title = (
        f"memory in GB of each of {plan.machine.ranks} GPU(s), {plan.dtype},\n"
        f"at the largest micro-batch: {largest.rows} × {largest.length} positions, {largest.images} image(s), "
        f"{max(largest.tiles, plan.rows.most_tiled.tiles)} tile(s)"
    )
    table = _table(title, "engine", "weights", "grads", "optimizer", "activations", "buffers", "sum", "host")
    for memory in plan.memory:
        cells = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.buffers)
        table.add_row(
            _own(_engine(memory.stage), memory.stage == plan.stage),
            *(gigabytes(cell) for cell in cells),
            Text(gigabytes(memory.total), style=_style(plan, memory.total)),
            gigabytes(memory.host),
        )
    return table


def _style(plan: Plan, total: float) -> str:
    return "red" if plan.gpu_memory_bytes is not None and total > plan.gpu_memory_bytes else ""


def _totals(plan: Plan) -> Table:
    ranks = list(plan.totals[0])
    table = _table("sum in GB by number of GPUs", "engine", *(str(count) for count in ranks))
    for stage, totals in plan.totals.items():
        table.add_row(_engine(stage), *(Text(gigabytes(totals[n]), style=_style(plan, totals[n])) for n in ranks))
    return table


def _host(plan: Plan) -> Table:
    title = "main memory in GB beside each process itself (about 1 GB)"
    table = _table(
        title, "engine", "start, rank 0", "start, others", "saving, rank 0", "offloaded, each", "peak, rank 0"
    )
    for host in plan.host:
        cells = (host.start_rank_0, host.start_others, host.saving_rank_0, host.offloaded, host.peak_rank_0)
        table.add_row(_own(_engine(host.stage), host.stage == plan.stage), *(gigabytes(cell) for cell in cells))
    return table


def _summary(plan: Plan) -> Text:
    data, own = plan.data, plan.own_memory
    lines = [
        f"\n{data.steps:,} steps over {data.samples:,} samples, {plan.flops / 1e15:,.3f} PFLOPs of useful work",
        f"logits: {gigabytes(plan.step_memory.logits)} GB of the activations; they exist a chunk of positions at a time",
    ]
    if plan.hours is not None:
        lines.append(
            f"{duration(plan.hours)} on {plan.machine.ranks} × {plan.machine.gpu} at {plan.machine.mfu:.0%} of its peak rate"
        )
    lines.append(_fit(plan, own))
    return Text("\n".join(lines))


def _fit(plan: Plan, own: GpuMemory) -> str:
    said = f"{_engine(plan.stage)} needs {gigabytes(own.total)} GB"
    if plan.gpu_memory_bytes is None:
        return said + "; name a --gpu to hold it against its memory"
    verdict = "fits in" if own.total <= plan.gpu_memory_bytes else "does not fit in"
    on_top = "the CUDA context and gaps between allocations (1 to 2 GB) come on top"
    return f"{said} and {verdict} {gigabytes(plan.gpu_memory_bytes)} GB; {on_top}"
