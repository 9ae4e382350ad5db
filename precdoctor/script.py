"""Run a script, a module or a console command as ``python`` would, under a Doctor.

Observation begins when the script imports torch, no earlier: what it sets up before, such as
``OMP_NUM_THREADS``, counts as it does without us. Processes that it starts are not observed.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precdoctor.evidence import Evidence, Place, Run
from precdoctor.program import TargetError, as_main, from_module, from_path

if TYPE_CHECKING:
    from precdoctor.doctor import Doctor
    from precdoctor.observe.provenance.recorder import Provenance
    from precdoctor.remedies.intervention import Intervention


#: shares of the CPU time and of the parameters' bytes that a scan may spend observing; a Doctor in a long
#: run is far more sparing
_BUDGET, _MEMORY = 0.25, 1.0


class StopScript(SystemExit):
    """Ends the script after the steps asked for.

    A `SystemExit`, since threads and event loops let that through without a traceback.
    """


def scan(
    target: str,
    argv: Sequence[str] = (),
    *,
    module: bool = False,
    steps: int | None = 50,
    every: int | None = None,
    watch: int | None = None,
    probe: bool = True,
    shadow: bool = False,
    look_at: int | None = None,
    progress: Callable[[int], None] | None = None,
    intervention: Intervention | None = None,
) -> Evidence:
    """Run a program in this process under observation and return what was seen.

    ``target`` is a script, with ``module`` a module, else a console command on PATH. The script is stopped
    after ``steps`` optimizer steps, None lets it run to its end. ``every``, ``watch``, ``probe``, ``shadow``
    and ``look_at`` are those of `Doctor`. ``progress`` is called with 0 at the start
    and with the number of steps after each. ``intervention`` is in force from the import of torch on, and
    what it raises it raises in the script. Whatever the script does is told by `Run.ended`, its traceback
    is printed; only `TargetError` is raised, where there is nothing to run.
    """
    program = from_module(target) if module else from_path(target)
    options = {"every": every, "watch": watch, "probe": probe, "shadow": shadow, "look_at": look_at}
    observer = _Observer(program.own, steps, options, progress, intervention)
    started, start, process = datetime.datetime.now().astimezone(), time.perf_counter(), os.getpid()
    if progress is not None:
        progress(0)
    main = types.ModuleType("__main__")  # alive until the evidence is complete, and the model with it
    error: BaseException | None = None
    with observer:
        try:
            with as_main(main, program, argv):
                exec(program.prepare(main), vars(main))
                _wait_for_threads()
        except TargetError:
            raise
        except BaseException as raised:
            error = raised
        if os.getpid() != process:  # a fork of the script's own that came to its end: not ours to report
            raise SystemExit(_ending(error)[1]) from None
    ended, code, text = ("stopped", 0, "") if observer.stopped else _ending(error)
    evidence = observer.evidence()
    run = dataclasses.replace(
        evidence.run,
        target=target,
        argv=tuple(argv),
        ended=ended,
        exit_code=code,
        error=text,
        started=started.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - start,
        limits=(*evidence.run.limits, *observer.limits, *([] if evidence.run.steps else _work_elsewhere())),
    )
    return dataclasses.replace(evidence, run=run)


def leave(code: int, *, grace_seconds: float = 2.0) -> None:
    """End the process after a script that was stopped; threads that it left running are not waited for.

    Python would wait for them for ever where they wait for a training loop that is gone.
    """
    deadline = time.monotonic() + grace_seconds
    for thread in _threads():
        thread.join(max(deadline - time.monotonic(), 0))
    if _threads():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


# ---------------------------------------------------------------------- how it ended


def _ending(error: BaseException | None) -> tuple[str, int, str]:
    """Return how the script ended, its exit code and its error in a line; print what python would."""
    with suppress(Exception):  # the script may have closed or replaced it
        sys.stdout.flush()
    if error is None:
        return "finished", 0, ""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130, ""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            code = error.code or 0
        else:
            code = 1
            sys.stderr.write(f"{error.code}\n")
        return ("exited" if code else "finished"), code, ""
    _strip(error, set())
    sys.excepthook(type(error), error, error.__traceback__)
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ in ("builtins", "__main__")
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    return "failed", 1, ": ".join([name, *str(error).splitlines()[:1]])


def _strip(error: BaseException, seen: set[int]) -> None:
    """Take our frames, and those of the import system around them, out of the tracebacks of an exception."""
    if id(error) in seen:
        return
    seen.add(id(error))
    kept, trace = [], error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        ours = name == "precdoctor" or name.startswith("precdoctor.")
        if not ours and not trace.tb_frame.f_code.co_filename.startswith("<frozen importlib"):
            kept.append(trace)
        trace = trace.tb_next
    rebuilt: types.TracebackType | None = None
    for trace in reversed(kept):
        rebuilt = types.TracebackType(rebuilt, trace.tb_frame, trace.tb_lasti, trace.tb_lineno)
    error.__traceback__ = rebuilt
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        if other is not None:
            _strip(other, seen)


def _work_elsewhere() -> list[str]:
    """Return a sentence on the processes that the script started, where they did any work."""
    with suppress(ImportError):  # not on Windows
        import resource

        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = used.ru_utime + used.ru_stime
        if seconds >= 1:
            return [
                f"processes that the script started used {seconds:.0f} s of CPU time; they are not observed"
            ]
    return []


def _threads() -> list[threading.Thread]:
    """Return the threads that python waits for at its end; idle workers of executors it ends itself."""
    workers = getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", {})
    return [
        thread
        for thread in threading.enumerate()
        if thread is not threading.current_thread() and not thread.daemon and thread not in workers
    ]


def _wait_for_threads() -> None:
    while threads := _threads():
        for thread in threads:
            thread.join()


# ---------------------------------------------------------------------- observing


class _Observer:
    """The Doctor and the provenance of one run, from the moment it has imported torch."""

    def __init__(
        self,
        own: tuple[Path, ...],
        steps: int | None,
        options: dict[str, Any],
        progress: Callable[[int], None] | None,
        intervention: Intervention | None,
    ) -> None:
        #: the steps asked for were made
        self.stopped = False
        self._own, self._options = own, options
        self._steps, self._progress, self._process = steps, progress, os.getpid()
        self._intervention = intervention
        self._doctor: Doctor | None = None
        self._provenance: Provenance | None = None
        self._stack = ExitStack()
        self._failure = ""

    def __enter__(self) -> _Observer:
        if "torch" in sys.modules:
            self._attach()
        else:
            finder = _TorchFinder(self._attach)
            sys.meta_path.insert(0, finder)
            self._stack.callback(finder.withdraw)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def limits(self) -> tuple[str, ...]:
        """Return what could not be observed."""
        found = self._provenance.limits if self._provenance is not None else []
        if self._failure:
            return (self._failure, *found)
        return tuple(found)

    def evidence(self) -> Evidence:
        """Return what was seen, with the source around every line that it names."""
        if self._doctor is None or self._provenance is None:
            limits = () if self._failure else ("torch was never imported",)
            return Evidence(run=Run(target="", python=platform.python_version(), limits=limits))
        evidence = self._doctor.evidence()
        return dataclasses.replace(evidence, excerpts=self._provenance.excerpts(_places(evidence)))

    def _attach(self) -> None:
        if self._intervention is None:
            self._observe()
            return
        self._stack.enter_context(self._intervention)
        self._observe()
        self._intervention.settle()
        self._stack.callback(self._intervention.unsettle)

    def _observe(self) -> None:
        try:
            from precdoctor.doctor import Doctor
            from precdoctor.observe.provenance.recorder import Provenance

            provenance = self._stack.enter_context(Provenance(own=self._own))
            doctor = Doctor(
                **self._options,
                budget=_BUDGET,
                stride=1,
                memory=_MEMORY,
                provenance=provenance,
                on_step=self._on_step,
            )
            self._stack.enter_context(doctor)
            self._provenance, self._doctor = provenance, doctor
        except Exception as error:  # the script runs all the same
            self._failure = f"could not attach: {type(error).__name__}: {error}"

    def _on_step(self, steps: int) -> None:
        if os.getpid() != self._process:
            return
        if self._progress is not None:
            with suppress(Exception):  # the terminal may be gone; the run goes on
                self._progress(steps)
        if self._steps is not None and steps >= self._steps:
            self.stopped = True
            if self._intervention is not None:
                self._intervention.step_ended()
            raise StopScript(0)


class _TorchFinder(MetaPathFinder):
    """Calls back when torch has been imported, by whomever."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def withdraw(self) -> None:
        """Leave the import system."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return the spec of torch, whose loader calls back; of nothing else."""
        if name != "torch":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            self._listen(spec.loader)
        return spec

    def _listen(self, loader: Loader) -> None:
        def exec_module(module: types.ModuleType) -> None:
            del loader.exec_module
            loader.exec_module(module)
            self.withdraw()
            self._then()

        loader.exec_module = exec_module  # type: ignore[method-assign]


def _places(record: Any) -> Iterator[Place]:
    """Yield every place in a record and the records below it."""
    if isinstance(record, Place):
        yield record
    elif isinstance(record, tuple):
        for item in record:
            yield from _places(item)
    elif dataclasses.is_dataclass(record):
        for field in dataclasses.fields(record):
            yield from _places(getattr(record, field.name))
