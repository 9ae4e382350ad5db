"""The edits: one function per remedy that can be written into the user's source."""

from __future__ import annotations

from collections.abc import Callable

from precdoctor.fix.edits.autocast import autocast
from precdoctor.fix.edits.construction import multiply_lr, plain_loop, set_beta2, set_eps, wrap_optimizer
from precdoctor.fix.edits.initial import scale_initial
from precdoctor.fix.edits.treatment import Treatment
from precdoctor.fix.sources import Sources

__all__ = ["EDITS", "Treatment"]

Edit = Callable[[Sources, Treatment], None]

#: by remedy; each raises `NoSafeEdit` where it would have to guess
EDITS: dict[str, Edit] = {
    "autocast": autocast,
    "master-weights": wrap_optimizer,
    "stochastic-rounding": wrap_optimizer,
    "kahan": wrap_optimizer,
    "float32-state": wrap_optimizer,
    "group-lr": multiply_lr,
    "reinit": scale_initial,
    "eps": set_eps,
    "beta2": set_beta2,
    "plain-optimizer": plain_loop,
}
