"""The modules of the process: who owns a parameter, and by what name."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn

from precdoctor.observe.probe.forwards import CALL, Forwards
from precdoctor.observe.watch import is_plain

#: prefixes that wrappers put in front of names
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


@dataclass(slots=True)
class Owner:
    """Where a parameter is registered."""

    name: str
    #: class of the module that holds it
    module: str
    #: identity of the outermost module, and of the module that holds it
    root: int
    holder: int


class Models:
    """Parameters by identity, with their qualified names."""

    def __init__(self, root: nn.Module | None = None) -> None:
        self._given = weakref.ref(root) if root is not None else None
        self._known: dict[int, tuple[weakref.ref[Tensor], Owner]] = {}
        #: names of the parameters that live optimizers hold, by identity (`place_in`)
        self.in_optimizers: dict[int, str] = {}

    def refresh(self) -> None:
        """Look at the live modules again (a walk over the garbage collector's objects, once in a while)."""
        self._known = {}
        claimed: set[str] = set()
        for root in self._roots():  # larger models first: they keep the plain names
            own: list[tuple[Tensor, Owner]] = []
            for prefix, module in _walk(root):
                for name, parameter in module._parameters.items():
                    if parameter is not None and is_plain(parameter) and id(parameter) not in self._known:
                        full = stripped(f"{prefix}.{name}" if prefix else name)
                        owner = Owner(full, type(module).__qualname__, id(root), id(module))
                        self._known[id(parameter)] = (weakref.ref(parameter), owner)
                        own.append((parameter, owner))
            names = {owner.name for _, owner in own}
            label, copies = "", 1
            while any(label + name in claimed for name in names):
                kind = type(root).__qualname__
                label, copies = (f"{kind}." if copies == 1 else f"{kind}{copies}."), copies + 1
            for _, owner in own:
                owner.name = label + owner.name
            claimed |= {owner.name for _, owner in own}

    def _roots(self) -> list[nn.Module]:
        given = self._given() if self._given is not None else None
        if given is not None:
            return [given]
        # type(), not isinstance(): a lazy proxy must not be woken by the question
        modules = [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]
        modules = [m for m in modules if "_modules" in m.__dict__]  # not half-built ones
        children = {id(c) for m in modules for c in m._modules.values() if c is not None}
        roots = [m for m in modules if id(m) not in children]
        return sorted(roots, key=lambda root: -sum(len(m._parameters) for _, m in _walk(root)))

    def owner(self, parameter: Tensor) -> Owner | None:
        """Return where a parameter is registered, None when no live module has it."""
        known = self._known.get(id(parameter))
        return known[1] if known is not None and known[0]() is parameter else None

    def name(self, parameter: Tensor) -> str:
        """Return the name of a parameter: in its module, else in its optimizer; "" where it has none."""
        owner = self.owner(parameter)
        return owner.name if owner is not None else self.in_optimizers.get(id(parameter), "")

    def buffer_names(self) -> dict[int, str]:
        """Return the qualified names of all live buffers by the identity of their storage."""
        names: dict[int, str] = {}
        for root in self._roots():
            for prefix, module in _walk(root):
                for name, buffer in module._buffers.items():
                    if buffer is not None and is_plain(buffer):
                        full = stripped(f"{prefix}.{name}" if prefix else name)
                        names.setdefault(buffer.untyped_storage()._cdata, full)
        return names

    def walk(self) -> Iterator[tuple[nn.Module, str, nn.Module]]:
        """Yield (root, prefix, module) for every live module, each once for its root."""
        for root in self._roots():
            for prefix, module in _walk(root):
                yield root, prefix, module

    def module_names(self) -> dict[int, str]:
        """Return the qualified names of all live modules by identity; of a root, its class."""
        names: dict[int, str] = {}
        for root in self._roots():
            for prefix, module in _walk(root):
                names.setdefault(id(module), stripped(prefix) or type(module).__qualname__)
        return names

    def parameters(self) -> list[tuple[Tensor, Owner]]:
        """Return the live parameters of all modules."""
        return [(p, owner) for ref, owner in self._known.values() if (p := ref()) is not None]


def _walk(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module below ``root`` once, with its name; whatever methods the user's classes override."""
    seen: set[int] = set()
    todo = [("", root)]
    while todo:
        prefix, module = todo.pop(0)
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield prefix, module
        children = [
            (f"{prefix}.{n}" if prefix else n, m) for n, m in module._modules.items() if m is not None
        ]
        todo[:0] = children


def stripped(name: str) -> str:
    """Return a qualified name without what wrappers (DDP, torch.compile, FSDP) put in."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper).replace("." + wrapper, ".")
    return name


def place_in(optimizer: str, group: int, position: int) -> str:
    """Return a name for a parameter of no module: its place in the optimizer of that type."""
    return f"{optimizer.rpartition('.')[2]}.group{group}[{position}]"


def _callers(frame: FrameType | None) -> frozenset[int]:
    """Return the identities of the modules whose forward is running."""
    found = set()
    while frame is not None:
        if frame.f_code is CALL:
            found.add(id(frame.f_locals["self"]))
        frame = frame.f_back
    return frozenset(found)


class Usage:
    """Which modules ran their forward in the first steps, inside which and called where: a global hook.

    It is removed soon, and at once by a call of torch.compile, whose guards it would make fail (`compiling`).
    ``on_call`` is told of each call, in whatever thread, with a frame inside of it.
    """

    def __init__(self, on_call: Callable[[nn.Module, FrameType], None] = lambda *_: None) -> None:
        self._on_call = on_call
        self.ran: dict[int, frozenset[int]] | None = None
        self.forwards = Forwards()
        self._handle: Any = None

    def start(self) -> None:
        """Begin to take note."""
        self.ran = ran = {}

        def note(module: nn.Module, _: Any) -> None:
            if id(module) not in ran:
                ran[id(module)] = _callers(sys._getframe(1))
            with suppress(Exception):  # whatever goes wrong with that is no matter of the run
                self.forwards.note(module, sys._getframe(1))
                self._on_call(module, sys._getframe(1))

        self._handle = nn.modules.module.register_module_forward_pre_hook(note)

    def compiling(self) -> None:
        """Stop, and claim nothing: what runs inside a compiled graph does not show."""
        self.stop()
        self.ran = None

    def stop(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
