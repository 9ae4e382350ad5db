"""Runs the trials, each in a fresh process, and judges them: untreated, in float32, and once per dose."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from pathlib import Path

from precdoctor.evidence import Evidence, Run
from precdoctor.remedies import REMEDIES, Dose
from precdoctor.remedies.full_float32 import FullFloat32
from precdoctor.rules import diagnose
from precdoctor.treat.plan import (
    Planned,
    by_hand,
    estimated_bytes,
    grave,
    patients,
    plan,
    reference,
)
from precdoctor.treat.processes import Processes, text_of
from precdoctor.treat.program import Program
from precdoctor.treat.store import Ran, Store
from precdoctor.treat.travel import compare
from precdoctor.trials import FLOAT32, UNTREATED, Trial, judge, judged_by, measure

#: a trial is given up after this many times the untreated run's time, and at least so many seconds
PATIENCE, LEAST_PATIENCE = 20.0, 120.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What came of treating a program."""

    #: of the untreated run
    evidence: Evidence
    trials: tuple[Trial, ...] = ()
    #: the program failed untreated: the end of what it printed
    failure: str = ""
    interrupted: bool = False


def treat(
    program: Program,
    tell: Tell,
    *,
    only: Collection[str] = (),
    jobs: int = 1,
    fresh: bool = False,
    select: Collection[str] = (),
    ignore: Collection[str] = (),
    store: Store | None = None,
) -> Treatment:
    """Run a program untreated and under each cure that its findings ask for; judge what came of it.

    ``tell`` is called with a line on each run. ``only`` are ids of remedies, ``select`` and ``ignore`` choose
    the rules whose findings are treated. Raises `TargetError` where there is nothing to run, and
    KeyboardInterrupt before anything is known.
    """
    program.check()
    with Processes(program, Store() if store is None else store, fresh=fresh, jobs=jobs) as processes:
        tell(f"running {program.target} untreated for {program.steps} optimizer steps")
        start = time.perf_counter()
        untreated = processes.start(None).result()
        evidence = untreated.evidence or _no_evidence(program, untreated)
        if untreated.status == "failed":
            tell(f"{program.target} failed untreated; its output: {untreated.log}")
            return Treatment(evidence=evidence, failure=_last_words(untreated.log))
        processes.patience = max(PATIENCE * (time.perf_counter() - start), LEAST_PATIENCE)
        diagnosis = diagnose(evidence, select, ignore)
        findings = grave(diagnosis)
        if not findings and not only:
            tell(f"nothing to treat: {diagnosis.summary}")
            return Treatment(evidence=evidence)
        for remedy, rules in by_hand(findings).items():
            tell(f"not tried, needs an edit by hand: {remedy} ({', '.join(rules)})")
        planned = plan(findings, only)
        if not planned:
            tell("nothing can be tried from outside")
            return Treatment(evidence=evidence)
        compared = reference(evidence, findings, patients(findings))
        ward = _Ward(program, planned, compared, untreated, evidence, patients(findings), tell, started=start)
        interrupted = False
        try:
            ward.run(processes)
        except KeyboardInterrupt:
            interrupted = True
        return Treatment(evidence=evidence, trials=ward.trials(), interrupted=interrupted)


class _Ward:
    """The trials of one program: which were planned, what they left, what that means."""

    def __init__(
        self,
        program: Program,
        planned: Sequence[Planned],
        reference: Dose | None,
        untreated: Ran,
        evidence: Evidence,
        subjects: tuple[str, ...],
        tell: Tell,
        *,
        started: float,
    ) -> None:
        self._program, self._tell = program, tell
        self._untreated, self._evidence, self._subjects = untreated, evidence, subjects
        self._doses: list[Planned | None] = list(planned)
        self._reference = Dose(remedy=FLOAT32) if reference is None else reference
        if reference is not None:
            self._doses.insert(0, None)
        self._float32: Ran | None = None
        self._done: dict[int, Trial] = {}
        self._told = 0
        self._say(self._of_comparison(UNTREATED, untreated), untreated, time.perf_counter() - started)

    def run(self, processes: Processes) -> None:
        """Run all trials; those that end before the float32 run wait for it to be judged."""
        started: dict[Future[Ran], int] = {}
        for index, item in enumerate(self._doses):
            started[processes.start(self._reference if item is None else item.dose)] = index
        waiting: list[tuple[int, Ran]] = []
        for future in as_completed(started):
            index, ran = started[future], future.result()
            if self._doses[index] is None:
                self._float32 = ran
            waiting.append((index, ran))
            if self._doses[0] is None and self._float32 is None:
                continue
            for position, other in sorted(waiting, key=lambda pair: pair[0]):
                self._judge(position, other, processes.seconds.get(other.log, 0.0))
            waiting = []

    def trials(self) -> tuple[Trial, ...]:
        """Return what is known: the untreated run, the float32 run, then the doses."""
        own = self._of_comparison(UNTREATED, self._untreated)
        return (own, *(self._done[index] for index in sorted(self._done)))

    def _judge(self, index: int, ran: Ran, seconds: float) -> None:
        item = self._doses[index]
        trial = self._of_comparison(FLOAT32, ran) if item is None else self._of_dose(item, ran)
        self._done[index] = trial
        self._say(trial, ran, seconds)

    def _of_comparison(self, name: str, ran: Ran) -> Trial:
        trial = self._with_costs(Trial(remedy=name, label=name, subjects=self._subjects), ran)
        evidence = self._evidence if name == UNTREATED else ran.evidence
        if ran.status != "ran" or evidence is None:
            return dataclasses.replace(trial, error=ran.error, why=f"it failed: {ran.error}")
        if name == FLOAT32:
            trial = dataclasses.replace(trial, settings=self._reference.settings)
            if trial.settings:
                trial = dataclasses.replace(
                    trial, why="no quantizer acts: products get the weights themselves"
                )
        if name == FLOAT32 and ran.bytes_per_parameter is not None:
            expected = self._estimated(FullFloat32, self._reference)
            trial = dataclasses.replace(trial, bytes_per_parameter_estimated=expected)
        return measure(trial, evidence, judged_by(self._subjects, self._evidence))

    def _of_dose(self, item: Planned, ran: Ran) -> Trial:
        remedy = next(known for known in REMEDIES if known.id == item.dose.remedy)
        trial = Trial(
            remedy=item.dose.remedy,
            label=item.label,
            settings=item.dose.settings,
            rules=item.rules,
            subjects=item.subjects,
            bytes_per_parameter_estimated=self._estimated(remedy, item.dose),
        )
        trial = self._with_costs(trial, ran)
        if ran.status == "does not apply":
            return dataclasses.replace(trial, outcome="does not apply", why=ran.error)
        failed = ran.status != "ran" or ran.evidence is None
        return judge(
            dataclasses.replace(trial, error=ran.error if failed else ""),
            ran.evidence or self._evidence,
            self._evidence,
            self._float32.evidence if self._float32 is not None and self._float32.status == "ran" else None,
            untreated_distance=self._travel(item.subjects, self._untreated)[1],
        )

    def _with_costs(self, trial: Trial, ran: Ran) -> Trial:
        """Add what evidence does not hold: travel, time, memory."""
        share, distance = self._travel(trial.subjects, ran)
        own, before = ran.step_seconds, self._untreated.step_seconds
        return dataclasses.replace(
            trial,
            travel_share=share,
            travel_distance=distance,
            step_seconds=own,
            step_time_ratio=own / before if own is not None and before else None,
            bytes_per_parameter=ran.bytes_per_parameter,
        )

    def _travel(self, subjects: tuple[str, ...], ran: Ran) -> tuple[float | None, float | None]:
        float32 = self._float32
        if float32 is None or not float32.travels or not ran.travels or ran is float32:
            return None, None
        return compare(ran.travels, float32.travels, judged_by(subjects, self._evidence))

    def _estimated(self, remedy: type, dose: Dose) -> float | None:
        before = self._untreated.bytes_per_parameter
        return None if before is None else estimated_bytes(before, self._evidence, remedy, dose)

    def _say(self, trial: Trial, ran: Ran, seconds: float) -> None:
        self._told += 1
        line = f"[{self._told}/{len(self._doses) + 1}] {trial.label}: "
        line += trial.outcome or ("failed" if trial.error else ", ".join(trial.found) or "no finding")
        line += " (kept from an earlier time)" if ran.kept else f", {seconds:.0f} s"
        if trial.outcome == "does not apply" or trial.error:
            line += f": {trial.error or trial.why}"
        if trial.error:
            line += f"; its output: {ran.log}"
        self._tell(line)


def _last_words(log: Path) -> str:
    """Return the traceback that a program printed last, else its last lines."""
    lines = text_of(log).rstrip().splitlines()[-80:]
    traces = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    return "\n".join(lines[traces[0] :] if traces else lines[-10:])


def _no_evidence(program: Program, ran: Ran) -> Evidence:
    run = Run(target=program.target, argv=program.argv, ended="failed", exit_code=1, error=ran.error)
    return Evidence(run=run)
