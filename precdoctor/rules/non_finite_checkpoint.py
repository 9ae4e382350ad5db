"""PD704: a checkpoint holds weights or optimizer state that are infinite or not a number."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence, Stored, Tensor
from precdoctor.rules.checkpoints import numel, subjects
from precdoctor.rules.finding import Finding
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import count, number, percent


class NonFiniteCheckpoint(Rule):
    """A checkpoint holds weights or optimizer state that are infinite or not a number.

    ## What it means

    Some values of the file are NaN or infinite: the run had already failed when it was saved, or a value was
    beyond the range of the format in which it was saved (65,504 in float16, 448 in e4m3fn).

    ## Why it hurts

    A model with such weights computes nothing else. State of an optimizer with such values spoils the
    weights in the first step after resuming, though they are still sound. A job that keeps only its
    latest checkpoints overwrites the last good one.

    ## Criterion

    An error where a weight or state of an optimizer in the last file has a NaN or an infinity. Masks, whose
    values are 0 and one infinity, may; other buffers with a NaN are a warning.

    ## Blind spots

    Values that are finite and absurd are not judged. Tensors that are no floating-point numbers, such as
    packed codes with scales in another tensor, are judged by those scales alone.

    ## Remedies

    Go back to the last checkpoint without them (`precdoctor diff` on each), and look for their origin with
    `precdoctor scan` (PD501). Where the format's range did it, save in bfloat16 or float32.

    ## References

    - PyTorch documentation, Numerical accuracy: extremal values
    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740: the range of float16
    """

    id: ClassVar[str] = "PD704"
    name: ClassVar[str] = "non-finite-checkpoint"
    example: ClassVar[str] = "non_finite_checkpoint.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding for weights and state, and one for buffers."""
        if evidence.contents is None:
            return []
        ill = [(t, s) for t in evidence.contents.tensors if (s := t.last) is not None and _is_spoilt(t, s)]
        sorts = (
            [(t, s) for t, s in ill if t.kind != "buffer"],
            [(t, s) for t, s in ill if t.kind == "buffer"],
        )
        where = evidence.contents.files[-1].path
        return [cls._finding(members, where) for members in sorts if members]

    @classmethod
    def _finding(cls, members: list[tuple[Tensor, Stored]], where: str) -> Finding:
        nan, infinite = sum(s.nan for _, s in members), sum(s.infinite for _, s in members)
        first, stored = members[0]
        kinds = {t.kind for t, _ in members}
        what = "weight" if kinds == {"parameter"} else kinds.pop() if len(kinds) == 1 else "tensor"
        parts = [count(n, kind) for n, kind in ((nan, "NaN"), (infinite, "infinity")) if n]
        said = " and ".join(parts).replace("NaNs", "NaN").replace("infinitys", "infinities")
        text = f"{count(len(members), what)} in {where} hold {said}"
        share = (stored.nan + stored.infinite) / numel(first)
        text += f"; {first.name}: {percent(share)} of its elements, the others up to {number(stored.largest)}"
        sound = [
            t for t, _ in members if t.first is not None and t.second is not None and not _spoilt(t.first)
        ]
        if sound:
            text += f". {len(sound):,} of them had only finite values in the first file"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning" if first.kind == "buffer" else "error",
            subjects=subjects(t for t, _ in members),
            message=text + ".",
            measured={"tensors": len(members), "nan": nan, "infinite": infinite, "share_of_first": share},
            prescriptions=ranked(
                [("older-checkpoint", "go on from a checkpoint in which all values are finite")]
            ),
        )


def _spoilt(stored: Stored) -> bool:
    return bool(stored.nan or stored.infinite)


def _is_spoilt(tensor: Tensor, stored: Stored) -> bool:
    if stored.nan:
        return True
    if tensor.kind == "buffer" or not stored.infinite:
        return False
    return not (stored.is_mask and tensor.kind == "parameter" and not tensor.stepped and stored.largest == 0)
