"""A run from start to end: ask, judge if wanted, filter, write. Run again, it goes on where it was."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

from mllm.errors import UserError
from mllm.files import write_json_atomically
from mllm.synthesis.instructions.asking import ask_all
from mllm.synthesis.instructions.backends import build_backend
from mllm.synthesis.instructions.backends.base import InstructionBackend, Prompt
from mllm.synthesis.instructions.config import InstructionConfig
from mllm.synthesis.instructions.filters import Candidate, Filter, build_filters
from mllm.synthesis.instructions.inputs import Inputs, Refused
from mllm.synthesis.instructions.journal import Journal
from mllm.synthesis.instructions.judging import Judge, parse_verdict
from mllm.synthesis.instructions.output import InstructionReport, report_of, write_output
from mllm.synthesis.instructions.parsing import UnparsableError, parse_turns
from mllm.synthesis.instructions.prompts import Request, Requests, load_objects
from mllm.synthesis.writing import REPORT_NAME


def write_instructions(config: InstructionConfig) -> InstructionReport:
    """Write NAME.jsonl for each input, recipe.yaml, rejected.jsonl and the report to `config.output`.

    Answers are kept beside them, in journals. What is written follows from the settings, the inputs and the answers alone,
    in the order of the inputs. Raises UserError for unusable settings or inputs, and, after writing what there is, for
    what ended the run before its end.
    """
    return asyncio.run(_run(config))


async def _run(config: InstructionConfig) -> InstructionReport:
    with ExitStack() as stack:
        backend = build_backend(config.backend)
        journal = stack.enter_context(Journal(config.output / "answers.sqlite"))
        judge_backend = verdicts = None
        if config.judge is not None:
            judge_backend = build_backend(config.judge.backend)
            verdicts = stack.enter_context(Journal(config.output / "verdicts.sqlite"))
        run = InstructionRun(config, backend, journal, judge_backend, verdicts)
        try:
            asked = await ask_all(run.prompts(), backend, journal, "asking")
            ended_by = asked.ended_by
            if judge_backend is not None and verdicts is not None and ended_by is None:
                ended_by = (await ask_all(run.judge_prompts(), judge_backend, verdicts, "judging")).ended_by
        finally:
            for one in (backend, judge_backend):
                if one is not None:
                    await one.close()
        output = write_output(config, run.survivors(is_judged=True))
        report = report_of(config, output, asked, ended_by is None, journal.totals(), backend)
        write_json_atomically(config.output / REPORT_NAME, report.model_dump(mode="json"))
    if ended_by is not None:
        raise UserError(f"{ended_by}; {report.samples:,} samples of {report.answered:,} answers are in {config.output}")
    return report


class InstructionRun:
    """The passes over the inputs, which all see the same requests in the same order."""

    def __init__(
        self,
        config: InstructionConfig,
        backend: InstructionBackend,
        journal: Journal,
        judge_backend: InstructionBackend | None = None,
        verdicts: Journal | None = None,
    ) -> None:
        self._config, self._backend, self._journal, self._verdicts = config, backend, journal, verdicts
        self._requests = Requests(config, backend)
        self._objects = load_objects(config.prompts)
        self._judge = Judge(judge_backend, config.prompts) if judge_backend is not None else None
        # Missing packages and wrong names are told before anything is paid for.
        self._filters()
        self._inputs = Inputs(config)

    def _filters(self) -> dict[str, Filter]:
        return build_filters(self._config.filters, self._objects, not self._backend.needs_facts)

    def prompts(self) -> Iterator[Prompt]:
        for item in self._requested():
            if isinstance(item, Request):
                yield item.prompt

    def judge_prompts(self) -> Iterator[Prompt]:
        assert self._judge is not None
        for item in self.survivors(is_judged=False):
            if isinstance(item, Candidate):
                yield self._judge.prompt(item)

    def _requested(self) -> Iterator[Request | Refused]:
        for item in self._inputs:
            if isinstance(item, Refused):
                yield item
                continue
            requests = list(self._requests.about(item))
            yield from requests
            if not requests:
                yield Refused("no_facts", "the facts suffice for none of the kinds", f"{item.source}-{item.id}")

    def survivors(self, is_judged: bool) -> Iterator[Candidate | Refused]:
        """Candidates that every filter lets pass, and in the place of each other request why it isn't one."""
        filters = self._filters()
        for item in self._requested():
            yield item if isinstance(item, Refused) else self._filtered(item, filters, is_judged)

    def _filtered(self, request: Request, filters: dict[str, Filter], is_judged: bool) -> Candidate | Refused:
        text = self._journal.get(request.prompt.key)
        if text is None:
            return Refused("unanswered", "", request.id)
        try:
            turns = parse_turns(text)
        except UnparsableError as error:
            return Refused("unparsable", f"{error}: {text[:500]}", request.id)
        if request.question is not None and len(turns) == 1:
            turns = [(request.question, turns[0][1])]
        candidate = Candidate(request, turns)
        for name, refuses in filters.items():
            detail = refuses(candidate)
            if detail is not None:
                return Refused(name, f"{detail}: {candidate.text[:500]}", request.id)
        return self._judged(candidate) if is_judged and self._judge is not None else candidate

    def _judged(self, candidate: Candidate) -> Candidate | Refused:
        assert self._judge is not None and self._verdicts is not None and self._config.judge is not None
        text = self._verdicts.get(self._judge.prompt(candidate).key)
        verdict = parse_verdict(text) if text is not None else None
        if verdict is not None and verdict[0] >= self._config.judge.min_score:
            return candidate
        detail = f"scored {verdict[0]}, {verdict[1]}" if verdict else f"no verdict in {(text or '')[:200]!r}"
        return Refused("judge", f"{detail}: {candidate.text[:500]}", candidate.request.id)
