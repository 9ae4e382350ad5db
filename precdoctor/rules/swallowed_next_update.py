"""PD703: the next update that a checkpoint foresees is lost in the format of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Evidence, Prognosis, Tensor
from precdoctor.rules.checkpoints import elements, in_store, is_low, subjects, trainable
from precdoctor.rules.descent import MIN_RELATIVE_RMS
from precdoctor.rules.finding import Finding
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.rule import Rule
from precdoctor.rules.swallowed_update import ERROR_EDQ
from precdoctor.rules.wording import count, number, percent

#: elements with an update from which a share is told: a scalar says nothing
MIN_JUDGED = 16


class SwallowedNextUpdate(Rule):
    """The next update that a checkpoint foresees is lost in the format of its weights.

    ## What it means

    The state of the optimizer in a checkpoint says how large the next update will be. Replayed in float64 and
    rounded to the format in which the weights are kept, most of it vanishes: training that goes on from this
    file goes on without these weights.

    ## Why it hurts

    It is the state of a run that has come to rest by rounding, late, when its steps are small. The loss
    seems converged. A speaker encoder at step 1,560,000 would lose 97 % of its next update in bfloat16, 80 %
    in float16 and 0.03 % in float32, in which it is kept.

    ## Criterion

    For weights in a format below float32: the effective descent quality of the replayed update is below 0.7,
    over at least 16 elements with an update, whose median is at least 1e-6 of the weights'. The gradient is
    not in the file. It is taken to be the one that leaves the optimizer's memory as it is, such as Adam's
    first moment; the report says what was assumed. Always a warning, as it is a forecast. State in which an
    optimizer may keep what rounding lost, or the weight in more digits, makes it a note, or judges the
    float32 copy.

    ## Blind spots

    Stochastic rounding leaves no trace in a checkpoint, and brings such updates through; so does an
    optimizer that keeps its float32 copies outside its state. A real gradient is noisier than its mean, so
    that single updates are larger than the one assumed. Learning rates are those of the file.

    ## Remedies

    Go on with float32 weights, converted once from this file, under autocast; or with float32 masters,
    stochastic rounding or Kahan summation.

    ## References

    - Yu et al. 2024, Collage: Light-Weight Low-Precision Strategy for LLM Training, arXiv 2405.03637
    - Zamirai et al. 2020, Revisiting BFloat16 Training, arXiv 2010.06192
    """

    id: ClassVar[str] = "PD703"
    name: ClassVar[str] = "swallowed-next-update"
    example: ClassVar[str] = "swallowed_next_update.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding for all such weights, and one for those whose optimizer may keep what is lost."""
        if evidence.contents is None:
            return []
        ill = [t for t in trainable(evidence.contents) if (p := in_store(t)) is not None and _is_lost(t, p)]
        plain = [t for t in ill if not t.extra_state]
        others = [t for t in ill if t.extra_state]
        return [cls._finding(tensors) for tensors in (plain, others) if tensors]

    @classmethod
    def _finding(cls, tensors: Sequence[Tensor]) -> Finding:
        told = [p for t in tensors if (p := in_store(t)) is not None]
        intended = sum(p.intended for p in told)
        lost = sum(p.lost_share * p.intended for p in told) / intended
        worst = max(told, key=lambda p: (p.lost_share, p.intended))
        bits = worst.headroom_bits.quantile(0.5)
        edq = sum((p.edq or 0.0) * p.intended for p in told) / intended
        text = (
            f"{count(len(tensors), 'weight')} ({count(elements(tensors), 'element')}) would lose "
            f"{percent(lost)} of their next update in {worst.format}: {number(worst.update)} at weights of "
            f"{number(worst.weight)} (medians of {tensors[told.index(worst)].name})"
        )
        if bits is not None and bits < 0:
            text += f", {number(-bits)} bits short"
        keys = sorted({key for t in tensors for key in t.extra_state})
        if keys:
            text += f"; the optimizer may keep what is lost in {', '.join(keys)}"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="note" if keys else "warning",
            subjects=subjects(tensors),
            message=text + ".",
            measured={
                "weights": len(tensors),
                "elements": elements(tensors),
                "lost_share": lost,
                "edq": edq,
                "headroom_bits_p50": bits,
                "next_update": worst.update,
                "weight": worst.weight,
            },
            prescriptions=ranked(
                [
                    ("autocast", "convert the weights to float32 once and go on under autocast"),
                    (
                        "master-weights",
                        f"go on with float32 copies that the optimizer steps, in {worst.format}",
                    ),
                    ("stochastic-rounding", "round updates up or down by chance, so that their mean arrives"),
                    ("kahan", "keep what rounding loses in a second buffer until it suffices"),
                ]
            ),
        )


def _is_lost(tensor: Tensor, prognosis: Prognosis) -> bool:
    if not is_low(tensor.last) or tensor.has_master or prognosis.edq is None:
        return False
    matters = prognosis.update >= MIN_RELATIVE_RMS * prognosis.weight
    return prognosis.intended >= MIN_JUDGED and matters and prognosis.edq < ERROR_EDQ
