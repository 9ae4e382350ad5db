"""PD304: an average whose increments round away."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence
from precdoctor.rules.accumulated import is_weight_decay
from precdoctor.rules.averages import stuck_averages
from precdoctor.rules.finding import Finding
from precdoctor.rules.rule import Rule


class FrozenAverage(Rule):
    """An average of weights or statistics is kept in a low format, and its increments round away.

    ## What it means

    A moving average takes a small step towards what it averages at each update: 1 - decay of the distance. In
    a format of 8 bits of significand a value moves only by a change above 1/512 to 1/256 of itself. With a
    decay of 0.999 what is averaged would have to be two to four times as large as the average before it
    moves. So copies of the weights (EMA, SWA, a teacher, a target network) stay what they were at first, and
    so do running statistics of a batch norm with a small momentum.

    ## Why it hurts

    The averaged model that is evaluated and saved is the initial one, more or less: after 2,000 steps with a
    decay of 0.999 in bfloat16 81 % of the elements still had their first value, and the average was 87 % of
    its way short. The loss of the training model shows nothing of it.

    ## Criterion

    Increments as the operations meant them, in float64, are compared with the change of the stored values: an
    error where the upper end of the 95 % interval of their EDQ is below 0.5, or over 80 % of them are lost,
    and the format keeps the average away by more than half of its value (eps / 4 / (1 - decay) > 0.5), or
    where it is, at the end, further from the exact average than a quarter of the way that one has come; a
    warning from a tenth on. The exact average is followed through the run where the parameter that it follows
    is known, and else by the mean of what was seen to go into it. The distance counts where it is over 3
    times what rounding the exact average once would leave, and over 3 times the doubt about it: the standard
    error of that mean, and the spread of an exact average of independent values; a quarter and more is a
    warning in spite of them where half of the increments are lost and the format keeps the average away.
    Averages whose exact value was reached are silent, whatever single increments did (Kahan, stochastic
    rounding).

    ## Blind spots

    Updates that run while the operation probe sleeps (after the first three steps it wakes at 5, 10, 15, 20,
    30, 50, 70, 100, ...) are seen by their results only. Of an average whose every value is a new tensor only
    the updates that were seen count.

    ## Remedies

    Keep the average in float32, whatever the format of the weights; cast it when it is used.

    ## References

    - d8ahazard/sd_dreambooth_extension issue 1415; lucidrains/ema-pytorch issue 18
    - Izmailov et al. 2018, Averaging Weights Leads to Wider Optima, arXiv 1803.05407
    """

    id: ClassVar[str] = "PD304"
    name: ClassVar[str] = "frozen-average"
    example: ClassVar[str] = "frozen_average.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per line that updates averages."""
        averages = (r for r in evidence.accumulations if not r.squares and not is_weight_decay(r))
        return stuck_averages(evidence, averages, (cls.id, cls.name))
