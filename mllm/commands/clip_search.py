"""`mllm clip index | search | browse`: images found by text or by image, from the command line or in a browser."""

import argparse
from pathlib import Path
from typing import Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_part, picture
from mllm.commands.clip_arguments import add_fit, check_picture
from mllm.commands.clip_eval import check_k
from mllm.errors import UserError
from mllm.settings import expanded

AN_INDEX = "A directory that `mllm clip index` wrote."


def add_search(parts: Any) -> None:
    _add_index(parts)
    search = add_part(
        parts,
        "search",
        _search,
        "Search an index by text or by image.",
        "mllm clip search runs/demo/index --text 'a red fruit' --sheet fruit.png",
    )
    search.add_argument("index", type=expanded, help=AN_INDEX)
    add_query(search)
    search.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="Find only images whose metadata meets this, such as 'year>=2020', 'source=easyvqa' or 'caption~dog' (holds "
        "the text). Repeatable: all have to be met.",
    )
    search.add_argument(
        "--effort",
        type=int,
        metavar="N",
        help="Number of lists, or of a graph's candidates, that are looked into. By default what found 95 percent of the "
        "nearest when the index was made.",
    )
    _add_model(search)
    browse = add_part(
        parts,
        "browse",
        _browse,
        "Search an index on a page in the browser, by text or by image.",
        "mllm clip browse runs/demo/index --port 8001",
    )
    browse.add_argument("index", type=expanded, help=AN_INDEX)
    browse.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on (default: %(default)s, this machine alone)."
    )
    browse.add_argument(
        "--port", type=int, default=8001, help="Port to listen on; 0 takes any that is free (default: %(default)s)."
    )
    _add_model(browse)


def _add_index(parts: Any) -> None:
    index = add_part(
        parts,
        "index",
        _index,
        "Make a FAISS index of a folder's images, for `mllm clip search`. Under torchrun the ranks share the images.",
        "mllm clip index data_recipes/demo/clip runs/demo/data/images runs/demo/index",
        "torchrun --nproc_per_node 8 -m mllm clip index clip photos photos_index --factory IVF4096,PQ64",
    )
    index.add_argument("model", type=expanded, help=A_DUAL_ENCODER)
    index.add_argument("folder", type=expanded, help="A folder of images, searched with its subfolders.")
    index.add_argument("out", type=expanded, help="The directory to write.")
    index.add_argument(
        "--factory",
        metavar="STRING",
        help="What FAISS makes, such as Flat, HNSW32, 'IVF1024,PQ16' or 'IVF1024,SQ8'. By default Flat up to 50,000 "
        "images, above it IVF with a byte a number.",
    )
    index.add_argument(
        "--add", action="store_true", help="Add the images that an index lacks to it; it must be of the same model."
    )
    index.add_argument(
        "--metadata",
        type=expanded,
        metavar="FILE",
        help='JSON lines of what is known of images, {"image": …, …} relative to the folder, for --where. '
        "metadata.jsonl in the folder, by default.",
    )
    add_fit(index)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=expanded, help="Where the index's model lies now. Where it lay when it was made, by default."
    )


def add_query(parser: argparse.ArgumentParser) -> None:
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", help="The text to find images for.")
    query.add_argument("--image", type=expanded, metavar="FILE", help="The image to find like images for.")
    parser.add_argument("-k", type=int, default=10, help="Number of images to find (default: %(default)s).")
    parser.add_argument("--sheet", type=picture, metavar="OUT.png", help="Draw what was found to this file.")


def command_of(options: argparse.Namespace) -> str:
    return f"mllm clip {options.clip_command}"


def query_of(encoder: Any, options: argparse.Namespace) -> Any:
    """Encode the query, float32 [E], normalized."""
    return (encoder.images([options.image]) if options.image else encoder.texts([options.text]))[0]


def show(options: argparse.Namespace, hits: list[Any]) -> None:
    """Print what was found, and draw it where a sheet is asked for."""
    for hit in hits:
        print(f"{hit.score:.4f}  {hit.path}")
    if options.sheet and hits:
        from mllm.contrastive.sheet import save_sheet

        save_sheet(hits, options.text or options.image, options.sheet, command_of(options))
        print(f"saved {options.sheet}")


def _index(options: argparse.Namespace) -> None:
    from mllm.contrastive.indexing import BY, build_index
    from mllm.contrastive.vectors import empty_vectors
    from mllm.evaluation.ranks import launched_ranks
    from mllm.inference.dual_features import load_encoder
    from mllm.outputs import check_directory

    if options.add and options.factory:
        raise UserError("--add goes on with the index's own kind: leave --factory out")
    check_directory(Path(options.out), BY, [options.folder, options.model])
    encoder = load_encoder(options.model, options.fit)
    if options.factory:
        empty_vectors(options.factory, encoder.texts(["a"]).shape[1])  # a mistake is said before images are encoded
    model = Path(options.model) / "final" if (Path(options.model) / "final").is_dir() else Path(options.model)
    with launched_ranks() as ranks:
        made = build_index(
            encoder, str(model), options.folder, options.out, options.factory, options.metadata, options.add, ranks
        )
        if made is None:
            return
        left_out = f", {made.skipped:,} unreadable left out" if made.skipped else ""
        new = f", {made.new:,} of them new" if options.add else ""
        recall = f"; {made.recall:.1%} of the 10 nearest are found" if made.recall is not None else ""
        print(f"saved {options.out}: {made.images:,} images{new}{left_out} ({made.factory}{recall})")


def _search(options: argparse.Namespace) -> None:
    from mllm.contrastive.index import open_index

    check_k(options.k)
    if options.effort is not None and options.effort < 1:
        raise UserError(f"--effort {options.effort}: give at least 1")
    check_picture(options.sheet, command_of(options))
    index = open_index(options.index)
    encoder = index.encoder(options.model)
    hits = index.search(query_of(encoder, options), options.k, options.where, options.effort)
    show(options, hits)
    if not hits:
        print("no image meets the conditions")


def _browse(options: argparse.Namespace) -> None:
    try:
        from mllm.contrastive.browse.app import browse
        from mllm.inference.serve.listening import bind
    except ImportError as error:
        raise UserError(f"mllm clip browse needs {error.name}; install the extra: pip install 'mllm[serve]'") from None
    from mllm.contrastive.index import open_index

    index = open_index(options.index)
    listener = bind(options.host, options.port)
    browse(index, index.encoder(options.model), Path(options.index).resolve().name, listener)
