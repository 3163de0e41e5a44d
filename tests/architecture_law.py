"""The floors of the house and who may import whom: one table, which tests hold and `docs/` shows.

A room is a file or folder of `mllm/`. It may import the rooms that are named, also within functions, and itself.
"""

from typing import NamedTuple


class Room(NamedTuple):
    name: str
    does: str
    may_import: frozenset[str]


class Floor(NamedTuple):
    """may_import: in words, what each of its rooms may import at most."""

    number: int
    description: str
    may_import: str
    members: tuple[Room, ...]

    @property
    def rooms(self) -> tuple[str, ...]:
        return tuple(room.name for room in self.members)


def _rooms(text: str) -> frozenset[str]:
    return frozenset(text.split())


ERRORS = _rooms("errors")
GROUND = _rooms("errors registry outputs files foreign_keys settings console launch running_mean html resources")
FIRST = GROUND | _rooms("kernels conversation media batch clients")
SECOND = FIRST | _rooms("model processor")
THIRD = SECOND | _rooms("data checkpoint")
FOURTH = THIRD | _rooms("training inference")
FIFTH = FOURTH | _rooms("evaluation synthesis rewards")
SIXTH = FIFTH | _rooms("finetune contrastive generation grpo preference")

FLOORS = (
    Floor(
        0,
        "what everything else stands on",
        "each other, sparingly",
        (
            Room("errors", "a user's mistake, and what else ends a command with one line", frozenset()),
            Room("registry", "tables of named parts", ERRORS),
            Room("outputs", "whose files may be replaced", ERRORS),
            Room("files", "atomic writes, hashes, full disks", _rooms("errors outputs")),
            Room("foreign_keys", "keys of other frameworks, and ours", frozenset()),
            Room("settings", "YAML and `--set` become strict settings", ERRORS | _rooms("foreign_keys")),
            Room("console", "tables that are printed", frozenset()),
            Room("launch", "what a launcher tells of a process", frozenset()),
            Room("running_mean", "the mean that follows a noisy curve", frozenset()),
            Room("html", "pages that are written", _rooms("files running_mean")),
            Room("resources", "the DeepSpeed settings and prompts that come along", ERRORS),
        ),
    ),
    Floor(
        1,
        "numbers, words, pixels and rows, each alone",
        "floor 0; batch and conversation also `media`",
        (
            Room("batch", "the row format that data makes and the model reads", GROUND | _rooms("media")),
            Room("clients", "servers of chat completions, for judges, endpoints and synthesis", GROUND),
            Room("conversation", "schema, prompt formats, segments → tokens", GROUND | _rooms("media")),
            Room(
                "kernels",
                "attention on packed and branched rows, the loss, lean and fused layers",
                GROUND | _rooms("batch"),
            ),
            Room("media", "images: where they lie, decoding, fitting, how many tokens", GROUND),
        ),
    ),
    Floor(
        2,
        "a model and the one door to it",
        "floors 0–1; the model also `processor`",
        (
            Room("processor", "tokenizer + format + geometry + pixels: the one door to a model", FIRST),
            Room("model", "encoders, projectors, splice, what is trained", FIRST | _rooms("processor")),
        ),
    ),
    Floor(
        3,
        "samples in files, and models on disk",
        "floors 0–1 and `processor`; `checkpoint` also `model`",
        (
            Room(
                "data",
                "recipes, readers, index and streams, mixture, packing, collation, tools",
                FIRST | _rooms("processor"),
            ),
            Room("checkpoint", "disk formats: ours, LLaVA, GGUF, mmproj; `load` is the one door", SECOND),
        ),
    ),
    Floor(
        4,
        "steps of training, and answers",
        "`training` floors 0–1; `inference` floors 0–3 but `data`",
        (
            Room("training", "the loop, engines, resume: knows no image and no text", FIRST),
            Room("inference", "answers, chat, likelihoods, the server", THIRD - _rooms("data")),
        ),
    ),
    Floor(
        5,
        "asking many questions, and writing many answers",
        "floors 0–4 but `training`; `rewards` also the others",
        (
            Room("evaluation", "benchmarks, metrics, controls, intervals, reports", FOURTH - _rooms("training")),
            Room(
                "synthesis", "captions → instructions: prompts, backends, journal, filters", FOURTH - _rooms("training")
            ),
            Room(
                "rewards",
                "what an answer is worth: metrics, rules, judges, functions",
                FOURTH - _rooms("training") | _rooms("evaluation synthesis"),
            ),
        ),
    ),
    Floor(
        6,
        "what can be trained: a room each, of the same files",
        "floors 0–5, never each other; `preference` also `finetune`, `grpo` both, `generation` `contrastive`",
        (
            Room("finetune", "alignment and instruction tuning: settings, task, run, plan", FIFTH),
            Room("contrastive", "CLIP and SigLIP: settings, data, task, run, zero-shot, retrieval", FIFTH),
            Room(
                "generation",
                "pictures from text and from embeddings: settings, data, task, run, samplers, what is on disk",
                FIFTH | _rooms("contrastive"),
            ),
            Room("grpo", "answers, their rewards, and learning from them", FIFTH | _rooms("finetune preference")),
            Room("preference", "pairs of answers: their losses, references and task", FIFTH | _rooms("finetune")),
        ),
    ),
    Floor(
        7,
        "experiments of papers, trials of models and rounds of training, imported by nobody but `commands`",
        "floors 0–6; `conformance` floors 0–4 but `training`",
        (
            Room("improve", "rounds of sampling, verifying, selecting, training and scoring", SIXTH),
            Room("studies", "few-shot adaptation, misalignment, diagnosis; nobody but commands imports it", SIXTH),
            Room(
                "conformance",
                "families of transformers made tiny, and what is computed of them held against transformers alone",
                FOURTH - _rooms("training"),
            ),
        ),
    ),
    Floor(
        8,
        "the command line, and what a user's program calls",
        "everything below",
        (
            Room("api", "what the package offers and no single room can", SIXTH),
            Room("commands", "one file a subcommand", SIXTH | _rooms("improve studies conformance api")),
            Room("cli", "the table of subcommands", GROUND | _rooms("commands")),
            Room("__main__", "`python -m mllm`", _rooms("cli commands")),
        ),
    ),
)
ROOMS = {room.name: room for floor in FLOORS for room in floor.members}
