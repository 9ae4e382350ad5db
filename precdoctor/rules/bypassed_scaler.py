"""PD404: a scaled loss is stepped without its scaler, or an unscaled one with it."""

from __future__ import annotations

from typing import ClassVar

from precdoctor.evidence import Bypass, Evidence, Region, Scaler
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, loss_scale, short_type


class BypassedScaler(Rule):
    """The loss is scaled and the step does not go through the scaler, or the other way round.

    ## What it means

    `scaler.scale(loss)` multiplies the gradients, `scaler.step(optimizer)` divides them again and leaves the
    step out when they are not finite. One without the other leaves gradients 65,536 times too large, or too
    small. A scaler that torch has disabled, for want of a GPU, does neither, beside an autocast region in
    float16 that needs it.

    ## Why it hurts

    SGD explodes or stands still. Adam hides it: its step does not depend on the size of the gradient, until
    eps, clipping, weight decay or a change of the scale show the difference, and inf reaches the weights.

    ## Criterion

    An error where an optimizer made a step with gradients that come from a scaled loss alone, and nobody had
    divided them (neither `unscale_` nor code of the user's own: they are as large as the backward pass left
    them); or where a step through the scaler divided gradients of a loss that was never scaled. A warning
    where a scaler was asked for, torch has disabled it, and products ran in float16.

    ## Blind spots

    The graphs of the first 16 backward passes are walked; what happens later only is not seen. Gradients from
    `torch.autograd.grad` and from backward passes with given gradients are not judged. `unscale_` followed
    by a step of the optimizer's own is accepted, though inf is not checked.

    ## Remedies

    `scaler.scale(loss).backward()`, `scaler.step(optimizer)` and `scaler.update()` belong together, for
    every loss and every optimizer.

    ## References

    - PyTorch documentation, Automatic Mixed Precision examples: working with unscaled gradients
    """

    id: ClassVar[str] = "PD404"
    name: ClassVar[str] = "bypassed-scaler"
    example: ClassVar[str] = "bypassed_scaler.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per step that does not belong to its loss, and per scaler that is disabled."""
        found = [
            cls._bypass(scaler, bypass)
            for scaler in evidence.scalers
            if scaler.enabled
            for bypass in scaler.bypasses
        ]
        half = next((r for r in evidence.regions if r.enabled and _is_half(r)), None)
        if half is not None:
            found += [
                cls._disabled(scaler, half)
                for scaler in evidence.scalers
                if scaler.requested and not scaler.enabled and scaler.scaled_at is not None
            ]
        return found

    @classmethod
    def _bypass(cls, scaler: Scaler, bypass: Bypass) -> Finding:
        kind = short_type(bypass.optimizer)
        if bypass.kind == "scaled gradient":
            text = (
                f"{kind} steps{at(bypass.place)} with gradients of a scaled loss as they are: they are "
                f"{loss_scale(bypass.scale)} times too large, and inf is not caught"
            )
            cure = "scaler.step(optimizer), then scaler.update(), in place of optimizer.step()"
        else:
            text = (
                f"The scaler steps {kind}{at(bypass.place)} and divides gradients of an unscaled loss: "
                f"they are {loss_scale(bypass.scale)} times too small"
            )
            cure = "scaler.scale(loss).backward() in place of loss.backward()"
        scaled = bypass.kind == "scaled gradient"
        causes = [bypass.place] if scaled else [bypass.backward]
        sites = [bypass.backward, scaler.scaled_at] if scaled else [bypass.place]
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="error",
            subjects=(Subject(kind="optimizer", name=kind),),
            message=f"{text}. Seen at {count(bypass.seen, 'step')}.",
            locations=locations(causes, sites),
            measured={"scale": bypass.scale, "seen": bypass.seen},
            prescriptions=ranked([("scaler-step", cure)]),
        )

    @classmethod
    def _disabled(cls, scaler: Scaler, region: Region) -> Finding:
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning",
            subjects=(Subject(kind="op", name=short_type(scaler.type)),),
            message=(
                f"The gradient scaler{at(scaler.place)} is disabled by torch, for want of its device, and "
                f"the forward pass{at(region.entered_at or region.place)} runs in float16 on "
                f"{region.device}: small gradients underflow without loss scaling."
            ),
            locations=locations([scaler.place], [scaler.scaled_at]),
            measured={"device": region.device},
            prescriptions=ranked(
                [
                    ("scaler-device", f'make it for the device: torch.amp.GradScaler("{region.device}")'),
                    ("loss-scaling", "multiply the loss before the backward pass, and divide the gradients"),
                ]
            ),
        )


def _is_half(region: Region) -> bool:
    return any(p.format == "float16" and p.trained for p in region.products)
