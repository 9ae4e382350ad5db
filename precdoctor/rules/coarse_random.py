"""PD509: random numbers formed in a format too coarse for what is made of them."""

from __future__ import annotations

import math
from typing import ClassVar

from precdoctor.evidence import CoarseUniform, Evidence, RoundedDecay
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import MIN_STEPS, functions, locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, number, percent, several

#: numbers drawn from which the ends of the range should have been seen
MIN_DRAWN = 256
#: draws expected nearer to the singularity than the nearest seen: none came with a chance of e^-16
GAP = 16.0
#: draws at the singularity, at one place next to it, or on the rare side of a comparison, and how many times
#: more at one place than expected
MIN_ATOMS, ATOMS = 4, 100.0
#: standard deviations, and share, by which a probability must be off
SIGMAS, OFF = 6.0, 0.25
#: probability of the entries which no number chooses (measured in bfloat16: 0.004 for 256 equal classes, 0.08
#: for 300, 0.5 for 1,000; at most 0.005 for 64 bins along a ray, however unequal)
MIN_MISSED = 0.05


class CoarseRandom(Rule):
    """Uniform random numbers, or decays, are formed in 16 bits, and what is made of them needs finer ones.

    ## What it means

    `torch.rand_like(x)` takes the format of `x`: near 1 neighbours are 1/256 apart in bfloat16, 1/2048 in
    float16, and a value that rounds to 1 comes as exactly 0, once in some hundred draws. A logarithm, a
    quantile function or a comparison with a small probability, or with 0, depends on just these ends, as
    does a decay: 0.9999 is 1 in 16 bits, and 1 - decay is 0. Of a table with more entries than there are
    numbers some are never chosen.

    ## Why it hurts

    Gumbel noise from bfloat16 has a largest value of 5.5 where float32 reaches 16, and with a thousand
    classes most rows have ties at the top: the samples are biased. log(0) gives infinite noise, or the
    logarithm of the eps that was to protect it. A mask with a rate of 0.1 % is never set. Of 4,000 words that
    are drawn by their cumulated frequencies 3,600 never come. An average whose decay was cast with the module
    that holds it stays what it was at first; returns with a discount of 0.999 are sums.

    ## Criterion

    A warning where at least 256 uniform numbers drawn in float16 or bfloat16 went into a function with a
    singularity (log, log1p, 1/x, erfinv, ...), and either none came nearer to it than at a distance within
    which 16 or more were expected, or some lay on it, or all at one place next to it, 100 times more often
    than expected. Also where a comparison of such numbers came out, rare side first, more than 25 % and 6
    standard deviations off its probability, with 4 such outcomes seen or expected: `u > 0`, the mask of a
    rate of 0, is false for one number in some hundred. Also where such numbers choose from a table by bounds
    that rise (`searchsorted`, `bucketize`, a count of the bounds below them that is then an index), or scaled
    and truncated to integers that are then an index (`(u * 1000).long()`), and the entries in whose interval
    no number of the format lies have together more than 5 % of the probability, and 36 draws or more of those
    seen. A factor between 0.9 and 1 that a cast, or a tensor made of it, has rounded, so that what it leaves
    to 1 is off by more than half, where tensors are scaled by it, or by what it leaves to 1, in three steps
    or more, or one value so often, one time after another (a sum of discounted rewards), that its weight is
    off by more than 25 %: an error where it has become 1.

    ## Blind spots

    Followed through elementwise operations with constants. What a fused operation draws inside (dropout,
    bernoulli_, exponential_) has its own arithmetic and is fine. Of a table whose bounds were rounded
    themselves, entries without a width count as meant. A decay that `torch.tensor` makes in 16 bits of a
    Python number is seen where the program's line gives it as a constant, a variable, an attribute, an item,
    or arithmetic of these.

    ## Remedies

    Draw in float32 and cast what comes out: `torch.rand_like(x, dtype=torch.float32)`. Keep decays as Python
    numbers, which no cast of a module reaches.

    ## References

    - CompVis/latent-diffusion, ldm/modules/ema.py (a decay in a buffer)
    - vllm-project/vllm#34854, pytorch/pytorch#41663, pytorch/pytorch#166853
    - Maddison et al. 2017, The Concrete Distribution, arXiv 1611.00712
    """

    id: ClassVar[str] = "PD509"
    name: ClassVar[str] = "coarse-random"
    example: ClassVar[str] = "coarse_random.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per line that draws."""
        found: dict[object, list[CoarseUniform]] = {}
        for item in evidence.uniforms:
            if item.drawn >= MIN_DRAWN and _why(item):
                found.setdefault(item.place, []).append(item)
        decays: dict[object, list[RoundedDecay]] = {}
        for decay in evidence.decays:
            if decay.steps >= MIN_STEPS or abs(_grown(decay) - 1) > OFF:
                decays.setdefault(decay.place, []).append(decay)
        return [*map(cls._finding, found.values()), *map(cls._of_decays, decays.values())]

    @classmethod
    def _of_decays(cls, items: list[RoundedDecay]) -> Finding:
        first = items[0]
        lines = several(sorted({at(item.used_at).removeprefix(" at ") for item in items}))
        most = max(items, key=lambda item: item.repeats)
        if abs(_grown(most) - 1) > OFF:
            what = f"has {number(_grown(most))} times the weight that was meant after {most.repeats:,} times"
        elif first.stored == 1:
            what = "keeps its old value and takes nothing up"
        else:
            what = f"forgets {number(1 - first.stored)} of itself each time and not {number(1 - first.meant)}"
        names = functions(item.used_at for item in items)
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error" if first.stored == 1 else "warning",
            subjects=tuple(Subject(kind="op", name=name) for name in names or ("decay",)),
            message=(
                f"A decay of {first.meant:.6g} is {first.stored:.6g} in {first.format}{at(first.place)}: "
                f"what is scaled by it at {lines} {what}."
            ),
            locations=locations([first.place], [i.used_at for i in items]),
            measured={
                "format": first.format,
                "meant": first.meant,
                "stored": first.stored,
                "uses": sum(i.uses for i in items),
                "repeats": most.repeats,
            },
            prescriptions=ranked(
                [
                    (
                        "float32-op",
                        "keep the decay as a Python number or in float32, whatever the format around",
                    )
                ]
            ),
        )

    @classmethod
    def _finding(cls, items: list[CoarseUniform]) -> Finding:
        first = items[0]
        names = functions(place for item in items for place in (item.place, item.used_at))
        modules = [i.module for i in items if i.module]
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning",
            subjects=(
                *(Subject(kind="op", name=name) for name in names or (first.operation,)),
                *(Subject(kind="module", name=name) for name in dict.fromkeys(modules)),
            ),
            message=(
                f"Uniform random numbers are drawn in {first.format}{at(first.place)} ({first.distinct:,} "
                f"different ones), and {'; '.join(dict.fromkeys(map(_why, items)))}."
            ),
            locations=locations([first.place], [i.used_at for i in items]),
            measured={
                "format": first.format,
                "distinct": first.distinct,
                "drawn": first.drawn,
                "operation": first.operation,
                "nearest": min(i.nearest for i in items) if first.use == "tail" else None,
                "zeros": sum(i.zeros for i in items),
                "expected": first.expected,
                "observed": first.observed,
                "entries": first.entries,
                "unreached": first.unreached,
            },
            prescriptions=ranked(
                [("float32-op", "draw them in float32, and cast what is made of them: dtype=torch.float32")]
            ),
        )


def _grown(decay: RoundedDecay) -> float:
    """Return the weight of what a decay was applied to again and again, over what was meant."""
    return math.exp(min(decay.repeats * math.log(decay.stored / decay.meant), 700.0))


def _why(item: CoarseUniform) -> str:
    """Return what is wrong with a use; empty where nothing is."""
    if item.use == "entry" and item.expected <= MIN_MISSED * item.drawn:
        return ""
    if item.use != "tail":
        off = abs(item.observed - item.expected)
        if max(item.observed, item.expected) < MIN_ATOMS:
            return ""
        if off <= OFF * item.expected or off <= SIGMAS * math.sqrt(item.expected):
            return ""
        if item.use == "entry":
            return (
                f"{item.unreached:,} of the {item.entries:,} entries that they choose from{at(item.used_at)} "
                f"lie between two of them and never come: {number(item.expected)} of {item.drawn:,} draws "
                f"should have been theirs, {item.observed:,.0f} were"
            )
        return (
            f"a comparison{at(item.used_at)} came out {item.observed:,.0f} times in {item.drawn:,} where "
            f"{number(item.expected)} were expected"
        )
    what = f"{item.operation}{at(item.used_at)}"
    if item.zeros >= MIN_ATOMS:
        share = percent(item.zeros / item.drawn)
        return f"{what} was given exactly the point where it is infinite {item.zeros:,} times ({share})"
    expected = item.expected
    if expected > GAP:
        return (
            f"{what} never saw its tail: nothing nearer than {number(item.nearest)}, where "
            f"{number(expected)} of {item.drawn:,} draws were expected; none exceeds {number(item.largest)}"
        )
    if item.nearest_count >= max(MIN_ATOMS, ATOMS * expected):
        return (
            f"{what} was given the same number next to where it is infinite {item.nearest_count:,} times in "
            f"{item.drawn:,}"
        )
    return ""
