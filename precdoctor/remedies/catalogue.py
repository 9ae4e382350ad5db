"""All remedies, in the order in which they are tried: the table of contents."""

from __future__ import annotations

from precdoctor.remedies.autocast import Autocast
from precdoctor.remedies.beta2 import Beta2
from precdoctor.remedies.block_scale import BlockScale
from precdoctor.remedies.eps import Eps
from precdoctor.remedies.float32_island import Float32Island
from precdoctor.remedies.float32_latent import Float32Latent
from precdoctor.remedies.float32_state import Float32StateRemedy
from precdoctor.remedies.full_float32 import FullFloat32
from precdoctor.remedies.group_lr import GroupLr
from precdoctor.remedies.kahan import Kahan
from precdoctor.remedies.keep_float32 import KeepFloat32
from precdoctor.remedies.loss_scaling import LossScaling
from precdoctor.remedies.master_weights import MasterWeightsRemedy
from precdoctor.remedies.plain_optimizer import PlainOptimizer
from precdoctor.remedies.refresh_cache import RefreshCache
from precdoctor.remedies.reinit import Reinit
from precdoctor.remedies.remedy import Remedy
from precdoctor.remedies.retie import Retie
from precdoctor.remedies.ste import StraightThrough
from precdoctor.remedies.stochastic_gradients import StochasticGradients
from precdoctor.remedies.stochastic_rounding import StochasticRoundingRemedy

REMEDIES: tuple[type[Remedy], ...] = (
    Autocast,
    MasterWeightsRemedy,
    StochasticRoundingRemedy,
    Kahan,
    Float32StateRemedy,
    Float32Island,
    GroupLr,
    Reinit,
    Eps,
    Beta2,
    LossScaling,
    PlainOptimizer,
    StraightThrough,
    RefreshCache,
    Float32Latent,
    BlockScale,
    StochasticGradients,
    KeepFloat32,
    Retie,
)


def remedy_of(name: str) -> type[Remedy]:
    """Return the remedy of that id, or the run of comparison ("float32"). Raises KeyError."""
    known: tuple[type[Remedy], ...] = (*REMEDIES, FullFloat32)
    return {remedy.id: remedy for remedy in known}[name]
