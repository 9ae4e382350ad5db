"""Where parameters are registered: in which modules, under what name, and which are in two places at once.

Registrations are seen as they happen, by hooks of torch. A place outlives the module in it: it is known by
the modules that the one in it was registered in, so that one can ask what stands there now.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from precdoctor.observe.frames import Spot, UserCode
from precdoctor.observe.patches import Patches

#: ties that are followed, and places of one parameter
_TIES, _SIDES = 64, 16
#: modules around a module that are asked what stands in its place
_DEPTH = 32
#: modules remembered before those that are gone are forgotten
_MODULES = 4096
#: functions that register parameters for the user
_LOADING = ("from_pretrained", "load_state_dict")


class Event(NamedTuple):
    """A registration: the user's line, and how it came about (`Tie.how`)."""

    spot: Spot | None
    how: str


@dataclass(slots=True, eq=False)
class Node:
    """A module, or the place where it was."""

    ref: weakref.ref[nn.Module]
    #: the modules that it was registered in, and under what name
    above: list[tuple[Node, str]] = field(default_factory=list)
    #: the last registration under each name, since there were ties
    events: dict[str, Event] = field(default_factory=dict)

    def now(self, depth: int = 0) -> nn.Module | None:
        """Return the module that stands in this place now; this one as long as it stands in any."""
        module = self.ref()
        others = []
        for parent, name in reversed(self.above) if depth < _DEPTH else ():
            above = parent.now(depth + 1)
            child = above._modules.get(name) if above is not None else None
            if child is not None and child is module:
                return module
            if child is not None:
                others.append(child)
        return others[0] if others else module

    def replaced(self, depth: int = 0) -> Event | None:
        """Return the registration that put another module in this place, or around it."""
        module = self.ref()
        for parent, name in reversed(self.above) if depth < _DEPTH else ():
            above = parent.ref()
            if above is not None and above._modules.get(name) is not module:
                return parent.events.get(name)
            event = parent.replaced(depth + 1)
            if event is not None:
                return event
        return None


@dataclass(slots=True, eq=False)
class Side:
    """A place of a parameter: a module, and the name in it."""

    node: Node
    name: str

    def holds(self, parameter: Tensor) -> bool:
        """Tell whether the parameter is there, in the module that it was registered in."""
        module = self.node.ref()
        return module is not None and module._parameters.get(self.name) is parameter


@dataclass(slots=True, eq=False)
class Tied:
    """Places that held the same parameter at once."""

    #: identity of the parameter
    key: int
    sides: list[Side]
    made: Spot | None


class Homes:
    """The places of all parameters; nothing is kept alive."""

    def __init__(self, code: UserCode) -> None:
        self.ties: list[Tied] = []
        self._code = code
        self._nodes: dict[int, Node] = {}
        self._most_nodes = _MODULES
        #: places of parameters by the parameter's identity
        self._sides: dict[int, list[Side]] = {}
        self._handles: list[Any] = []
        self._patches = Patches()

    # ------------------------------------------------------------------ life

    def attach(self) -> None:
        """Begin to see registrations."""
        self._handles = [
            torch_module.register_module_parameter_registration_hook(self._on_parameter),
            torch_module.register_module_buffer_registration_hook(self._on_buffer),
            torch_module.register_module_module_registration_hook(self._on_module),
        ]
        self._patches.wrap(nn.Module, "__setstate__", self._around_setstate)

    def detach(self) -> None:
        """See no more; what is known stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._patches.undo()

    # ------------------------------------------------------------------ registrations

    def _on_parameter(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        with suppress(Exception):  # whatever goes wrong with that is no matter of the run
            self._note(module, name, "assigned", sys._getframe(1))
            if parameter is not None:
                self._register(module, name, parameter, sys._getframe(1))

    def _on_buffer(self, module: nn.Module, name: str, _: Tensor | None) -> None:
        with suppress(Exception):
            self._note(module, name, "registered", sys._getframe(1))

    def _on_module(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        with suppress(Exception):
            self._note(module, name, "module replaced", sys._getframe(1))
            if child is not None:
                self._place(module, name, child)

    def _around_setstate(self, original: Any) -> Any:
        def wrapper(module: nn.Module, state: Any) -> None:
            original(module, state)
            if self._handles:
                with suppress(Exception):
                    self.meet(module, sys._getframe(1))

        return wrapper

    def meet(self, module: nn.Module, frame: FrameType | None = None) -> None:
        """Take note of a module that the hooks did not see being filled: a copy, or one made before."""
        for name, child in module._modules.items():
            if child is not None:
                self._place(module, name, child)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                self._register(module, name, parameter, frame)

    def node(self, module: nn.Module) -> Node:
        """Return the node of a live module."""
        node = self._nodes.get(id(module))
        if node is None or node.ref() is not module:
            if len(self._nodes) >= self._most_nodes:
                self._forget()
            node = self._nodes[id(module)] = Node(weakref.ref(module))
        return node

    def _note(self, module: nn.Module, name: str, how: str, frame: FrameType) -> None:
        if self.ties:
            spot, passed = self._code.innermost(frame)
            how = next((function for function in _LOADING if function in passed), how)
            self.node(module).events[name] = Event(spot, how)

    def _place(self, module: nn.Module, name: str, child: nn.Module) -> None:
        node, parent = self.node(child), self.node(module)
        if parent is not node and (parent, name) not in node.above:
            node.above.append((parent, name))

    def _register(self, module: nn.Module, name: str, parameter: Tensor, frame: FrameType | None) -> None:
        node = self.node(module)
        sides = [side for side in self._sides.get(id(parameter), ()) if side.holds(parameter)]
        if len(sides) >= _SIDES or any(side.node is node and side.name == name for side in sides):
            return
        sides.append(Side(node, name))
        self._sides[id(parameter)] = sides
        if len(sides) > 1:
            self._tie(id(parameter), sides, frame)

    def _tie(self, key: int, sides: list[Side], frame: FrameType | None) -> None:
        places = {(side.node, side.name) for side in sides}
        for tied in self.ties:
            known = {(side.node, side.name) for side in tied.sides}
            if (
                len(places & known) > 1 or places <= known
            ):  # one place more, or tied again by another parameter
                tied.key = key
                tied.sides += [side for side in sides if (side.node, side.name) not in known]
                return
        if len(self.ties) < _TIES:
            spot = None if frame is None else self._code.innermost(frame)[0]
            self.ties.append(Tied(key, list(sides), spot))

    def _forget(self) -> None:
        self._nodes = {key: node for key, node in self._nodes.items() if node.ref() is not None}
        self._sides = {
            key: alive
            for key, sides in self._sides.items()
            if (alive := [side for side in sides if side.node.ref() is not None])
        }
        self._most_nodes = max(_MODULES, 2 * len(self._nodes))
