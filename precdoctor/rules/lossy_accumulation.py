"""PD205: gradients of many backward passes are swamped when they are summed in a low format."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Accumulation, Evidence, Place
from precdoctor.formats import Format
from precdoctor.rules.accumulated import accumulation_subjects, low_format, origin_of, who
from precdoctor.rules.finding import Finding, Severity
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import cause_of_format, locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, number, percent

#: error of the sum, relative to it, from which a warning and an error are due (measured, bfloat16: 0.3 %
#: for 4 passes, 17 % for 1,024)
WARNING_ERROR, ERROR_ERROR = 0.02, 0.1
#: backward passes that go into it at least: fewer cannot swamp
MIN_PASSES = 4


class LossyAccumulation(Rule):
    """Gradients of many backward passes are summed in a low format, and the late ones round away.

    ## What it means

    Backward adds to `.grad` in the gradient's format, which is that of the parameter. Once the sum is 256
    times as large as a contribution, bfloat16 takes no more of it: the last micro-batches of a long
    accumulation do not count, and all are rounded to the spacing of the sum.

    ## Why it hurts

    The step is taken along another gradient than that of the batch, shorter and biased to the first
    micro-batches. Over 1,024 micro-batches in bfloat16 it was measured to be 24 % off and 17 % too short.

    ## Criterion

    The same gradients are summed in float64 beside the sum, on a sample of the elements, and both are
    compared when an optimizer steps: a warning where the median parameter's error is 2 % or more and over 4
    passes went in, an error from 10 % on. The error is relative to the sum, or to the size that a sum of as
    many independent gradients has, whichever is larger: a sum that cancels is no alarm. Sums that a program
    keeps itself are judged alike where gradients are added to them, in a hook too.

    ## Blind spots

    Seen in the first steps, and now and then later, while operations are looked at. Sums over ranks are not.

    ## Remedies

    Add to a float32 buffer after each backward pass, or keep the weights, and with them the gradients, in
    float32 under autocast.

    ## References

    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740
    - deepspeedai/DeepSpeed issue 2768; NVIDIA/Megatron-LM issue 502
    """

    id: ClassVar[str] = "PD205"
    name: ClassVar[str] = "lossy-accumulation"
    example: ClassVar[str] = "lossy_accumulation.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return one finding per line that sums gradients."""
        found = []
        for record in evidence.accumulations:
            fmt, severity = low_format(record), _severity(record)
            if record.kind == "gradient" and fmt is not None and severity is not None:
                found.append(cls._finding(evidence, record, fmt, severity))
        return found

    @classmethod
    def _finding(cls, evidence: Evidence, record: Accumulation, fmt: Format, severity: Severity) -> Finding:
        by_name = {p.name: p for p in evidence.parameters}
        known = [by_name[name] for name in record.names if name in by_name]
        casts: list[Place | None] = [*map(cause_of_format, known)] or [
            origin_of(evidence, record),
            record.made,
        ]
        text = (
            f"{who(record, 'gradient')}: {record.passes:,} backward passes are summed in {record.format}"
            f"{at(record.place)}, which takes nothing below {number(fmt.eps / 4)} .. "
            f"{number(fmt.eps / 2)} of the "
            f"sum. At the step it is {percent(record.error)} off the exact sum (median parameter), and "
            f"{percent(record.projection)} of that is in it"
        )
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=severity,
            subjects=accumulation_subjects(record, "parameter"),
            message=text + ".",
            locations=locations(
                [*casts, record.place] if any(casts) else [record.place], [record.read_at, record.place]
            ),
            measured={
                "format": record.format,
                "passes": record.passes,
                "relative_error": record.error,
                "projection": record.projection,
                "lost_share": record.lost_share,
            },
            prescriptions=ranked(
                [
                    (
                        "float32-accumulator",
                        "after each backward pass add the gradient to a float32 buffer and set it to None",
                    ),
                    (
                        "autocast",
                        "float32 weights under torch.autocast have float32 gradients: they are summed in it",
                    ),
                ]
            ),
        )


def _severity(record: Accumulation) -> Severity | None:
    if record.passes <= MIN_PASSES or record.error < WARNING_ERROR:
        return None
    return "error" if record.error >= ERROR_ERROR else "warning"
