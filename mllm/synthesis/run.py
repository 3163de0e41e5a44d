"""A run from start to end: ask, judge if wanted, filter, write. Run again, it goes on where it was."""

import asyncio
from contextlib import ExitStack

from mllm.errors import UserError
from mllm.files import write_json_atomically
from mllm.synthesis.asking import ask_all, reasons_of
from mllm.synthesis.backends import build_backend
from mllm.synthesis.following import ANSWERS_NAME, Follower
from mllm.synthesis.inputs import ImageDecisions
from mllm.synthesis.journal import Journal
from mllm.synthesis.output import BY, REPORT_NAME, InstructionReport, check_output, report_of, write_output
from mllm.synthesis.passes import InstructionRun
from mllm.synthesis.settings import InstructionConfig


def write_instructions(config: InstructionConfig) -> InstructionReport:
    """Write NAME.jsonl for each input, recipe.yaml, rejected.jsonl and the report to `config.output`.

    Answers are kept beside them, in journals. What is written follows from the settings, the inputs and the answers alone,
    in the order of the inputs. Raises UserError for unusable settings or inputs, and, after writing what there is, for
    what ended the run before its end.
    """
    check_output(config)
    return asyncio.run(_run(config))


async def _run(config: InstructionConfig) -> InstructionReport:
    with ExitStack() as stack:
        backend = build_backend(config.backend)
        journal = stack.enter_context(Journal(config.output / ANSWERS_NAME))
        judge_backend = verdicts = None
        if config.judge is not None:
            judge_backend = build_backend(config.judge.backend)
            verdicts = stack.enter_context(Journal(config.output / "verdicts.sqlite"))
        images = ImageDecisions()
        run = InstructionRun(config, backend, journal, judge_backend, verdicts, images)
        follower = Follower(config, images)
        stack.callback(follower.stop)
        try:
            asked = await ask_all(run.prompts(), backend, journal, "asking", follower.decided)
            ended_by = asked.ended_by
            if ended_by is None and asked.failed and not asked.answered + asked.from_before:
                reasons = reasons_of(asked.failed)
                ended_by = UserError(f"none of the requests was answered ({reasons}); mend the backend and run again")
            if judge_backend is not None and verdicts is not None and ended_by is None:
                ended_by = (await ask_all(run.judge_prompts(), judge_backend, verdicts, "judging")).ended_by
        finally:
            for one in (backend, judge_backend):
                if one is not None:
                    await one.close()
        output = follower.finish() if ended_by is None else None
        if output is None:
            follower.stop()
            output = write_output(config, run.survivors(is_judged=True))
        report = report_of(config, output, asked, ended_by is None, journal.totals(), backend)
        write_json_atomically(config.output / REPORT_NAME, report.model_dump(mode="json"), BY)
    if ended_by is not None:
        raise UserError(f"{ended_by}; {report.samples:,} samples of {report.answered:,} answers are in {config.output}")
    return report
