"""The passes of a run over its inputs: what is asked, and what becomes of the answers."""

from collections.abc import Iterator

from mllm.synthesis.backends.base import InstructionBackend, Prompt
from mllm.synthesis.damage import check_place
from mllm.synthesis.filters import Candidate, Filter, build_filters
from mllm.synthesis.inputs import ImageDecisions, Inputs, Refused, Waits
from mllm.synthesis.journal import AnswerReader, Journal
from mllm.synthesis.judging import Judge, parse_verdict
from mllm.synthesis.naming import load_objects
from mllm.synthesis.parsing import UnparsableError, parse_turns
from mllm.synthesis.preferences import KIND as PREFERENCE
from mllm.synthesis.preferences import paired
from mllm.synthesis.prompts import Request, Requests
from mllm.synthesis.settings import InstructionConfig


class InstructionRun:
    """The passes over the inputs, which all see the same requests in the same order."""

    def __init__(
        self,
        config: InstructionConfig,
        backend: InstructionBackend,
        journal: AnswerReader,
        judge_backend: InstructionBackend | None = None,
        verdicts: Journal | None = None,
        images: ImageDecisions | None = None,
        waits: Waits | None = None,
    ) -> None:
        """`images` and `waits` are those of `Inputs`."""
        self._config, self._backend, self._journal, self._verdicts = config, backend, journal, verdicts
        self._requests = Requests(config, backend)
        self._objects = load_objects(config.prompts)
        self._judge = Judge(judge_backend, config.prompts) if judge_backend is not None else None
        # Missing packages and wrong names are told before anything is paid for.
        self._filters()
        self._inputs, self._waits = Inputs(config, images, waits), waits

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
            if self._config.damage.share:
                check_place(item)
            requests = list(self._requests.about(item))
            yield from requests
            if not requests:
                yield Refused("no_facts", "the facts suffice for none of the kinds", f"{item.source}-{item.id}")

    def survivors(self, is_judged: bool) -> Iterator[Candidate | Refused]:
        """Candidates that every filter lets pass, and in the place of each other request why it isn't one."""
        filters = self._filters()
        number = 0
        for item in self._requested():
            if isinstance(item, Refused):
                yield item
                continue
            if self._waits is not None:
                self._waits.wait_for_request(number)
            number += 1
            yield self._filtered(item, filters, is_judged)

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
        if request.kind == PREFERENCE:
            by_template = self._backend.kinds is not None
            try:
                pair = paired(turns, request.prompt.sort, request.prompt.context, self._objects, by_template)
            except UnparsableError as error:
                return Refused("unparsable", f"{error}: {text[:500]}", request.id)
            candidate = Candidate(request, pair.turns, pair)
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
