"""All rules, by id: the table of contents."""

from __future__ import annotations

from precdoctor.rules.approaching_freeze import ApproachingFreeze
from precdoctor.rules.broken_tie import BrokenTie
from precdoctor.rules.bypassed_scaler import BypassedScaler
from precdoctor.rules.cancellation import Cancellation
from precdoctor.rules.clip_before_unscale import ClipBeforeUnscale
from precdoctor.rules.coarse_loss import CoarseLoss
from precdoctor.rules.coarse_random import CoarseRandom
from precdoctor.rules.collapsed_loss_scale import CollapsedLossScale
from precdoctor.rules.context_free_plateau import ContextFreePlateau
from precdoctor.rules.frozen_average import FrozenAverage
from precdoctor.rules.frozen_parameter import FrozenParameter
from precdoctor.rules.gradient_overflow import GradientOverflow
from precdoctor.rules.gradient_underflow import GradientUnderflow
from precdoctor.rules.inactive_autocast import InactiveAutocast
from precdoctor.rules.inexact_integer import InexactInteger
from precdoctor.rules.lossy_accumulation import LossyAccumulation
from precdoctor.rules.low_precision_reduction import LowPrecisionReduction
from precdoctor.rules.mask_overflow import MaskOverflow
from precdoctor.rules.missing_gradient import MissingGradient
from precdoctor.rules.needless_scaler import NeedlessScaler
from precdoctor.rules.non_finite_checkpoint import NonFiniteCheckpoint
from precdoctor.rules.non_finite_origin import NonFiniteOrigin
from precdoctor.rules.one_sided_update import OneSidedUpdate
from precdoctor.rules.orphan_parameter import OrphanParameter
from precdoctor.rules.position_collision import PositionCollision
from precdoctor.rules.quantization_noise import QuantizationNoise
from precdoctor.rules.rule import Rule
from precdoctor.rules.saturated_quantizer import SaturatedQuantizer
from precdoctor.rules.severed_gradient import SeveredGradient
from precdoctor.rules.severed_quantizer import SeveredQuantizer
from precdoctor.rules.stagnant_second_moment import StagnantSecondMoment
from precdoctor.rules.stale_autocast_cache import StaleAutocastCache
from precdoctor.rules.stale_optimizer import StaleOptimizer
from precdoctor.rules.stale_quantized_weight import StaleQuantizedWeight
from precdoctor.rules.state_underflow import StateUnderflow
from precdoctor.rules.stuck_counter import StuckCounter
from precdoctor.rules.swallowed_next_update import SwallowedNextUpdate
from precdoctor.rules.swallowed_update import SwallowedUpdate
from precdoctor.rules.swallowed_weight_decay import SwallowedWeightDecay
from precdoctor.rules.swamped_sum import SwampedSum
from precdoctor.rules.truncated_checkpoint import TruncatedCheckpoint
from precdoctor.rules.truncated_weight import TruncatedWeight
from precdoctor.rules.unchanged_parameter import UnchangedParameter
from precdoctor.rules.vanishing_epsilon import VanishingEpsilon

CATALOGUE: tuple[type[Rule], ...] = (
    FrozenParameter,  # PD101
    SwallowedUpdate,  # PD102
    OneSidedUpdate,  # PD103
    SwallowedWeightDecay,  # PD104
    ApproachingFreeze,  # PD105
    TruncatedWeight,  # PD106
    MissingGradient,  # PD201
    SeveredGradient,  # PD202
    GradientUnderflow,  # PD203
    GradientOverflow,  # PD204
    LossyAccumulation,  # PD205
    StagnantSecondMoment,  # PD301
    StateUnderflow,  # PD302
    VanishingEpsilon,  # PD303
    FrozenAverage,  # PD304
    StuckCounter,  # PD305
    InactiveAutocast,  # PD401
    CollapsedLossScale,  # PD402
    ClipBeforeUnscale,  # PD403
    BypassedScaler,  # PD404
    NeedlessScaler,  # PD405
    StaleOptimizer,  # PD406
    OrphanParameter,  # PD407
    StaleAutocastCache,  # PD408
    NonFiniteOrigin,  # PD501
    PositionCollision,  # PD502
    LowPrecisionReduction,  # PD503
    MaskOverflow,  # PD504
    SwampedSum,  # PD505
    Cancellation,  # PD506
    CoarseLoss,  # PD507
    InexactInteger,  # PD508
    CoarseRandom,  # PD509
    SeveredQuantizer,  # PD601
    StaleQuantizedWeight,  # PD602
    QuantizationNoise,  # PD603
    SaturatedQuantizer,  # PD604
    BrokenTie,  # PD605
    ContextFreePlateau,  # PD606
    UnchangedParameter,  # PD701
    TruncatedCheckpoint,  # PD702
    SwallowedNextUpdate,  # PD703
    NonFiniteCheckpoint,  # PD704
)
