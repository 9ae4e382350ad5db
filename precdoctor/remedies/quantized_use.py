"""A tensor made of one weight that a product is about to get, and what could be given to it instead."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from precdoctor.observe.graph import route
from precdoctor.observe.lineage.made import Made, Ref, Root

if TYPE_CHECKING:
    from precdoctor.remedies.following import Follower

#: largest used value over the weight's, beyond which values are codes whose scale follows after the product
_CODES = 2.0
#: elements among which values are counted, and those that a row must have
_COUNTED, _ROW = 1 << 14, 64
#: steps up to the largest value in which values are told apart
_FINEST = 1 << 12


class QuantizedUse:
    """A tensor that a product is about to get, made of one parameter, or the parameter itself."""

    def __init__(
        self, follower: Follower, root: Root, parameter: Tensor, made: Made | None, tensor: Tensor
    ) -> None:
        self._follower, self.root = follower, root
        #: the parameter, and how the tensor was made of it; None: it is the parameter, or a view of it
        self.parameter, self.made = parameter, made
        #: what the program gives to the product
        self.tensor = tensor

    @property
    def is_rounded(self) -> bool:
        """Tell whether the values lie on a grid."""
        return self.made is not None and self.made.values == "rounded"

    @property
    def is_coarse(self) -> bool:
        """Tell whether the values lie on a grid, or went through 16 bits."""
        return self.is_rounded or (self.made is not None and self.made.narrow is not None)

    @property
    def is_stale(self) -> bool:
        """Tell whether an optimizer has stepped since the values were rounded, or cast to 16 bits."""
        made = self.made
        return made is not None and self.is_coarse and _source(made).step < self._follower.steps

    @property
    def is_severed(self) -> bool:
        """Tell whether the gradient of the used values does not come to the weight, or only by the scale.

        Where none is recorded: whether that was so before.
        """
        root, severed = self.root, self._follower.severed
        if torch.is_grad_enabled():
            way = route(self.tensor, self.parameter)[0]
            if way in ("cut", "zero derivative", "scale only") or (
                way == "custom function" and self._is_blocked()
            ):
                severed.add(root)
            else:
                severed.discard(root)
        return root in severed

    @property
    def levels(self) -> int:
        """Return to how many values the weight was rounded at most: codes, values in it or in a row of it.

        Codes alone are too many where they are clipped afterwards, values where each row has its own scale.
        """
        values = self.tensor.detach()
        values = (values * (_FINEST / values.abs().max())).round()  # w + (q - w) is not quite on the grid
        counted = [values.reshape(-1)[:_COUNTED]]
        if values.dim() == 2:
            rows = values.t() if values.stride(0) < values.stride(1) else values
            counted += [row for row in rows[:1] if row.numel() >= _ROW]
        if self.made is not None and self.made.codes is not None:
            counted.append(self.made.codes)
        return min(int(torch.unique(some).numel()) for some in counted)

    @property
    def steps(self) -> int:
        """Return how many steps optimizers have made."""
        return self._follower.steps

    @property
    def is_of_one(self) -> bool:
        """Tell whether no other parameter, such as a learned scale, has a part in the tensor."""
        return self.made is None or len(self.made.roots) == 1

    def weight(self, value: Tensor | None = None) -> Tensor:
        """Return the parameter, or another tensor of its shape, as the used tensor lies and in its format.

        Where codes are used, whose scale follows after the product: in units of it.
        """
        value = self.parameter if value is None else value
        units = self._units() if self.is_rounded else None
        return self._laid_out(value if units is None else value * units).to(self.tensor.dtype)

    def fresh(self) -> Tensor:
        """Return the used values made again from the parameter as it is now."""
        assert self.made is not None
        # of w + (q - w), which is another tensor each time, the rounded values: those are made anew once
        terms = [m for m, factor in self.made.terms.items() if isinstance(m, Made) and factor == 1]
        alike = [m for m in terms if len(self.made.terms) == 1 and _lies_as(m, self.made)]
        value = self._follower.remade(alike[0] if alike else self.made, self.tensor.device)
        offset = int(self.tensor.storage_offset()) - self.made.offset + int(value.storage_offset())
        return value.as_strided(self.tensor.size(), self.tensor.stride(), offset)

    # ------------------------------------------------------------------ gradient, layout

    def _is_blocked(self) -> bool:
        """Tell whether a custom function gives nothing back of a random gradient; asked once."""
        known = self._follower.blocked
        if self.root not in known:
            sent = torch.randn(self.tensor.shape, generator=torch.Generator().manual_seed(0)).to(self.tensor)
            try:
                found: tuple[Tensor | None, ...] = torch.autograd.grad(
                    self.tensor, self.parameter, sent, retain_graph=True, allow_unused=True
                )
            except RuntimeError:  # inside a checkpoint: nothing can be sent before its forward is complete
                return False
            known[self.root] = found[0] is None or not bool(found[0].count_nonzero())
        return known[self.root]

    def _laid_out(self, value: Tensor) -> Tensor:
        """Return a tensor of the parameter's shape as the used one lies."""
        made, parameter = self.made, self.parameter
        of = (made.size, made.stride, made.offset) if made is not None else _geometry(parameter)
        size, stride, offset = _geometry(self.tensor)
        value = (value.t() if self._is_turned() else value).reshape(of[0])
        if (size, stride) == of[:2]:
            return value
        if len(size) == 2 and (size[::-1], stride[::-1]) == of[:2]:
            return value.t()
        places = torch.empty_strided(of[0], of[1], dtype=torch.long, device=value.device)
        places.copy_(torch.arange(value.numel(), device=value.device).reshape(of[0]))
        view = places.as_strided(size, stride, offset - of[2])
        return value.reshape(-1)[view.reshape(-1)].reshape(size)

    def _units(self) -> Tensor | None:
        """Return how many codes a unit of the weight has in each row; None where the values are to scale."""
        weight, codes = self.parameter.detach(), self.tensor.detach()
        if float(codes.abs().max()) <= _CODES * float(weight.abs().max()):
            return None
        rows = torch.arange(weight.shape[0], device=weight.device).view(-1, *[1] * (weight.dim() - 1))
        row = self._laid_out(rows.expand(weight.shape)).reshape(-1)
        own = self._laid_out(weight).reshape(-1)
        sums = [
            torch.zeros(len(weight), device=weight.device).index_add_(0, row, (own * other).float())
            for other in (codes.reshape(-1), own)
        ]
        return (sums[0] / sums[1].clamp(min=torch.finfo(torch.float32).tiny)).view(rows.shape)

    def _is_turned(self) -> bool:
        """Tell whether a matrix was quantized after a transposition: whichever is the closer one."""
        made, shape, known = self.made, self.root.shape, self._follower.turned
        if made is None or len(shape) != 2 or made.size != shape[::-1]:
            return False
        if self.root not in known:
            with torch.no_grad():
                own = self.parameter.detach().to(self.tensor.dtype)
                base = self.tensor.detach().as_strided(made.size, made.stride, made.offset)
                straight, turned = own.reshape(made.size) - base, own.t() - base
                known[self.root] = bool(turned.square().sum() < straight.square().sum())
        return known[self.root]


def straight_through(path: Tensor, value: Tensor) -> Tensor:
    """Return a value, up to a rounding, whose gradient goes to ``path`` too, of the same shape.

    The same as path + (value - path).detach() for a value without history. Sums are what a `Lineage` sees
    through: a Doctor finds the quantizer in it.
    """
    if not torch.is_grad_enabled() or not path.requires_grad:
        return value
    return (value + path) - path.detach()


def use_of(follower: Follower, tensor: Any) -> QuantizedUse | None:
    """Return what is known of an argument of a product; None where it is not made of one weight.

    Other parameters, such as a learned scale, may have a part in it that are smaller.
    """
    what = follower.known(tensor)
    if what is None:
        return None
    made = what if isinstance(what, Made) else None
    roots = [r for r in ((what,) if isinstance(what, Root) else what.roots) if r.numel == tensor.numel()]
    parameter = roots[0].alive() if len(roots) == 1 else None
    if parameter is None:
        return None
    if made is not None and (made.dtype != tensor.dtype or math.prod(made.size) != tensor.numel()):
        return None  # reinterpreted, or part of something larger
    return QuantizedUse(follower, roots[0], parameter, made, tensor)


def _source(made: Made) -> Made:
    """Return the rounding, or the cast to 16 bits, that a made tensor goes back to."""
    if made.rounded is not None:
        return made.rounded
    while True:
        bases = (ref.base for ref in made.args if isinstance(ref, Ref))
        narrow = next((b for b in bases if isinstance(b, Made) and b.narrow is not None), None)
        if narrow is None:
            return made
        made = narrow


def _lies_as(made: Made, other: Made) -> bool:
    return (made.size, made.stride, made.dtype) == (other.size, other.stride, other.dtype)


def _geometry(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
