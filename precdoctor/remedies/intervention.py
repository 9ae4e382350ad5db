"""An intervention: how a remedy acts on a run from outside, and how everything is put back.

torch is imported where it is used: an intervention is made before the program has imported it.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from precdoctor.observe.patches import Patches
from precdoctor.remedies.remedy import DoesNotApply, Dose

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    OnOptimizer = Callable[[torch.optim.Optimizer], None]


class Intervention:
    """A treatment of one run: entered once torch is imported and before a Doctor attaches.

    ``dose`` names the remedy ("float32" for the run of comparison); None: nothing is treated. Call
    `settle` after the Doctor has attached, `unsettle` before it detaches, and `check` at the end.
    """

    def __init__(self, dose: Dose | None = None) -> None:
        self.dose = dose
        #: the treatment found something to act on; remedies set it
        self.acted = False
        #: what it means that it did not, in a clause
        self.otherwise = "it found nothing to act on"
        #: acting from outside takes more time than the remedy would: steps are not worth timing
        self.is_slow = False
        self.patches = Patches()
        self._on_optimizer: list[OnOptimizer] = []
        self._before: list[OnOptimizer] = []
        self._after: list[OnOptimizer] = []
        self._held: list[Callable[[], int]] = []
        self._at_exit: list[Callable[[], None]] = []
        self._inside: list[AbstractContextManager[Any]] = []
        self._entered = ExitStack()
        #: optimizers whose step is running, with the frame of torch's hook wrapper
        self._stepping: dict[int, tuple[torch.optim.Optimizer, FrameType]] = {}
        self._handles: list[Any] = []
        self._active = False

    # ------------------------------------------------------------------ for remedies

    def on_optimizer(self, callback: OnOptimizer) -> None:
        """Call ``callback(optimizer)`` whenever `Optimizer.__init__` has returned."""
        self._on_optimizer.append(callback)

    def before_step(self, callback: OnOptimizer) -> None:
        """Call ``callback(optimizer)`` before each step, and before a Doctor looks."""
        self._before.append(callback)

    def at_first_step(self, callback: OnOptimizer) -> None:
        """Call ``callback(optimizer)`` before each optimizer's first step."""
        met: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()

        def once(optimizer: torch.optim.Optimizer) -> None:
            if optimizer not in met:
                met.add(optimizer)
                callback(optimizer)

        self.before_step(once)

    def after_step(self, callback: OnOptimizer) -> None:
        """Call ``callback(optimizer)`` after each step, and after a Doctor has looked."""
        self._after.append(callback)

    def at_exit(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` at the end of the run, the last one first."""
        self._at_exit.append(callback)

    def inside(self, context: AbstractContextManager[Any]) -> None:
        """Enter a context once a Doctor has attached, and leave it before that detaches.

        Modes of torch lie on a stack: those of the treatment above the Doctor's, which sees what comes of it.
        """
        self._inside.append(context)

    def held(self, callback: Callable[[], int]) -> None:
        """Count the bytes that ``callback()`` returns as kept by the treatment."""
        self._held.append(callback)

    def held_bytes(self) -> int:
        """Return how many bytes the treatment keeps: masters, compensations."""
        return sum(callback() for callback in self._held)

    def named(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return an optimizer's parameters by the names of evidence (a walk over all objects)."""
        from precdoctor.observe.models import Models

        models = Models()
        models.refresh()
        found = {}
        for index, group in enumerate(optimizer.param_groups):
            for position, parameter in enumerate(group["params"]):
                owner = models.owner(parameter)
                loose = f"{type(optimizer).__qualname__}.group{index}[{position}]"
                found[owner.name if owner is not None else loose] = parameter
        return found

    def chosen(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Return the parameters of an optimizer that the dose speaks of."""
        named, subjects = self.named(optimizer), self.dose.subjects if self.dose is not None else ()
        return [p for name, p in named.items() if not subjects or name in subjects]

    def groups(self, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        """Return the parameter groups that hold a parameter of which the dose speaks."""
        chosen = {id(p) for p in self.chosen(optimizer)}
        return [g for g in optimizer.param_groups if any(id(p) in chosen for p in g["params"])]

    def wrap_optimizers(self, wrapper: Callable[[torch.optim.Optimizer], Any]) -> None:
        """Give every optimizer a wrapper that acts through hooks of its own; the wrappers are kept alive."""
        self.otherwise = "no optimizer steps a weight below float32"
        wrappers: list[Any] = []

        def wrap(optimizer: torch.optim.Optimizer) -> None:
            wrappers.append(wrapper(optimizer))

        def note(optimizer: torch.optim.Optimizer) -> None:
            self.acted = self.acted or bool(low_parameters(optimizer))

        self.on_optimizer(wrap)
        self.before_step(note)
        self.held(lambda: sum(w.held_bytes() for w in wrappers))

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Intervention:
        import torch
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        if self.dose is not None:
            from precdoctor.remedies.catalogue import remedy_of

            remedy_of(self.dose.remedy).apply(self.dose, self)
        self._active = True
        self._handles.append(register_optimizer_step_pre_hook(self._before_step))
        self.patches.wrap(torch.optim.Optimizer, "__init__", self._around_construction)
        return self

    def settle(self) -> None:
        """Take the last place among those that look at a step's result; call it once a Doctor is attached."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._handles.append(register_optimizer_step_post_hook(self._after_step))
        for context in self._inside:
            self._entered.enter_context(context)

    def unsettle(self) -> None:
        """Leave what `settle` has entered; call it before the Doctor detaches."""
        self._entered.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.step_ended()
        self.unsettle()
        self._active = False
        for handle in self._handles:
            handle.remove()
        self._handles = []
        while self._at_exit:
            self._at_exit.pop()()
        self.patches.undo()

    def check(self) -> None:
        """Raise `DoesNotApply` where the treatment found nothing to act on."""
        if self.dose is not None and not self.acted:
            raise DoesNotApply(self.otherwise)

    def step_ended(self) -> None:
        """Do what is due after the steps under way: a run that is stopped inside one does not come back."""
        while self._stepping:
            optimizer, _ = self._stepping.popitem()[1]
            for callback in self._after:
                callback(optimizer)

    # ------------------------------------------------------------------ hooks

    def _around_construction(self, original: Any) -> Any:
        def wrapper(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            if self._active:
                for callback in self._on_optimizer:
                    callback(optimizer)

        return wrapper

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        import torch

        if torch.compiler.is_compiling():
            return
        frame = sys._getframe(1)
        known = self._stepping.get(id(optimizer))
        if known is not None:
            if _runs(known[1], frame):
                return  # a step that calls its parent class's
            self.step_ended()  # that one raised
        self._stepping[id(optimizer)] = (optimizer, frame)
        for callback in self._before:
            callback(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        known = self._stepping.get(id(optimizer))
        if known is None or known[1] is not sys._getframe(1):
            return
        del self._stepping[id(optimizer)]
        for callback in self._after:
            callback(optimizer)


def low_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return an optimizer's parameters in a 16-bit format."""
    return [p for group in optimizer.param_groups for p in group["params"] if is_low(p.dtype)]


def is_low(dtype: torch.dtype) -> bool:
    """Tell whether a dtype is float16 or bfloat16."""
    import torch

    return dtype in (torch.bfloat16, torch.float16)


def modules_around(parameters: Iterable[Tensor]) -> list[nn.Module]:
    """Return the live modules of all models that hold one of these parameters."""
    from torch import nn

    wanted = {id(p) for p in parameters}
    # type(), not isinstance(): a lazy proxy must not be woken by the question
    live = [o for o in gc.get_objects() if issubclass(type(o), nn.Module) and "_modules" in o.__dict__]
    holding = [m for m in live if any(id(p) in wanted for p in m.parameters())]
    return list({id(part): part for module in holding for part in module.modules()}.values())


def to_float32(tensor: Tensor) -> None:
    """Give a parameter or buffer float32 elements in place: whoever holds it goes on holding it."""
    tensor.data = tensor.data.float()
    if tensor.grad is not None:
        tensor.grad = tensor.grad.float()


def _runs(wanted: FrameType, frame: FrameType | None) -> bool:
    while frame is not None:
        if frame is wanted:
            return True
        frame = frame.f_back
    return False
