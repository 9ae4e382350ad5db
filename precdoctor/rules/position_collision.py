"""PD502: positions and timesteps that coincide, or jump, in their format."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Evidence, LostIntegers
from precdoctor.rules.finding import Finding
from precdoctor.rules.lost_integers import (
    decisive,
    integer_locations,
    integer_subjects,
    is_position,
    measured,
    what_happened,
)
from precdoctor.rules.phases import wrong_phases
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.rule import Rule


class PositionCollision(Rule):
    """Positions, timesteps or frequencies coincide, or jump, in the format that holds them.

    ## What it means

    bfloat16 has the integers up to 256, float16 those up to 2,048; beyond, only every second, fourth, eighth
    one. Of the positions 0 to 767 in bfloat16 449 are left. `arange(n).type_as(x)`, `timesteps.to(dtype)`, an
    `inv_freq` buffer that went along with `model.to(torch.bfloat16)`, or a product under autocast bring
    them there.

    ## Why it hurts

    What is computed from a position depends on all of its digits: the sine and cosine of a rotary or
    sinusoidal embedding are off by up to 2, neighbours get the same embedding, a causal mask by comparison
    lets a token see the next one. Short sequences work, and long ones do not.

    ## Criterion

    A warning where numbers lost digits in a 16-bit format (at least 1 % of them changed or no longer told
    apart), and something that depends on them followed: a sine or cosine with a phase off by 0.1 rad or more;
    for numbers that follow one another, also a comparison, a difference, a remainder, a look-up, or, where a
    fifth of them coincide, an addition to or a product with what is trained, while it is trained; and where
    they are averaged by probabilities that are trained (a soft argmax), under autocast too, a root mean
    square error of a quarter of the distance between two: in a mean of many the errors of neighbours cancel.

    ## Blind spots

    Positions that were low already when the program got them. Numbers are followed through the operations of
    torch while the probe is awake; what happens inside one fused operation does not show.

    ## Remedies

    Compute positions, frequencies and phases in float32 and cast the sines and cosines. Keep such buffers out
    of `model.to(...)`, or make them anew in the forward pass.

    ## References

    - Issues huggingface/transformers#29285 (rotary), EleutherAI/gpt-neox#1016, NVIDIA/Megatron-LM#535
    - Issues modelscope/DiffSynth-Studio#1025, huggingface/diffusers#9405
    """

    id: ClassVar[str] = "PD502"
    name: ClassVar[str] = "position-collision"
    example: ClassVar[str] = "position_collision.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per line that brought positions into a format too coarse for them."""
        found = [cls._finding(item) for item in evidence.integers if is_position(item) and decisive(item)]
        return found + wrong_phases(evidence, cls.id, cls.name)

    @classmethod
    def _finding(cls, item: LostIntegers) -> Finding:
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning",
            subjects=integer_subjects(item),
            message=what_happened(item, "positions" if item.sequence else "numbers"),
            locations=integer_locations(item),
            measured=measured(item),
            prescriptions=ranked(
                [("float32-op", "compute positions and phases in float32, and cast what comes out of them")]
            ),
        )
