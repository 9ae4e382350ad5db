"""PD401: an autocast region that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Evidence, Product, Region
from precdoctor.rules.finding import Finding, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import locations
from precdoctor.rules.rule import Rule
from precdoctor.rules.wording import at, count, several

#: formats that autocast casts to
LOW = ("float16", "bfloat16")
#: products that must have been seen
MIN_PRODUCTS = 2
#: calls of layers in other threads that must have been seen
MIN_LAYERS = 2


class InactiveAutocast(Rule):
    """An autocast region that was asked for changes nothing: the products that it is for run in float32.

    ## What it means

    The region is for another device than the one that computes (`torch.autocast("cuda")` around a model on
    the CPU, or the reverse), torch has disabled it because it has no such device or does not support the
    format (with a warning that is easy to miss), it does not enclose the forward pass (the loss alone, the
    backward pass, the call of a generator that runs later), its object was made and never entered, or the
    forward passes run in other threads: autocast holds for the thread that opens it.

    ## Why it hurts

    The run is in float32 while its author believes, and writes into the log, that it is in 16 bits: the
    speed and memory are those of float32, and comparisons between formats compare a format with itself. A
    loss scaler beside it scales gradients that need none.

    ## Criterion

    A warning where a region was asked for in float16 or bfloat16, at least 2 matrix products, convolutions or
    the like ran inside it, and all of them in float32 or float64; or where none ran in any region that is
    enabled, while products with trained operands ran in float32 outside; or where, in the first three steps,
    no layer was called in the region's thread, and at least 2 that are trained in float32 were called, with
    gradient and without autocast, in other threads while it was open, and none with autocast. What lies
    inside a region with `enabled=False` was kept in float32 on purpose and does not count.

    ## Blind spots

    Products are seen while the operation probe is awake, and in its thread; of other threads, calls of
    modules in the first three steps. A region of one model of several is judged by itself. An evaluation
    under autocast counts as a use of autocast.

    ## Remedies

    Take the device type from the tensors: `torch.autocast(device.type, dtype=torch.bfloat16)`. Enclose the
    forward pass and the loss, and leave the region before the backward pass. Open it in the function that a
    thread runs.

    ## References

    - PyTorch documentation, torch.amp.autocast (device_type, enabled)
    - karpathy/nanoGPT#27, huggingface/diffusers#5507
    - PyTorch documentation, Automatic Mixed Precision examples: working with multiple GPUs (the state is
      that of a thread)
    """

    id: ClassVar[str] = "PD401"
    name: ClassVar[str] = "inactive-autocast"
    example: ClassVar[str] = "inactive_autocast.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per region without effect."""
        asked = [r for r in evidence.regions if r.requested and r.format in LOW]
        idle = [r for r in asked if r.entered and _is_idle(r)]
        found = [cls._finding(region, _why(region), region.products) for region in idle]
        threaded = [r for r in asked if _is_elsewhere(r)]
        found += [cls._in_threads(region) for region in threaded]
        outside = [p for p in evidence.products_outside if p.trained and p.format not in LOW]
        if sum(p.trained for p in outside) >= MIN_PRODUCTS:
            encloses_none = [
                r for r in asked if not r.products and (r.seen or not r.entered) and r not in threaded
            ]
            if not any(r.products for r in asked if r.enabled):
                found += [cls._finding(region, _why(region), outside) for region in encloses_none]
        return found

    @classmethod
    def _finding(cls, region: Region, why: str, products: Sequence[Product]) -> Finding:
        total = sum(p.count for p in products)
        where = several([f"{p.format} on {p.device}" for p in products])
        seen = f"All of the {count(total, 'product')} that were seen ran in {where}"
        return cls._of(region, f"{why}. {seen}", {"products": total}, _cure(region))

    @classmethod
    def _in_threads(cls, region: Region) -> Finding:
        layers = region.layers_elsewhere
        why = (
            f"it holds for the thread that opens it, and the model runs in others{at(region.elsewhere)}. "
            f"{count(layers, 'call')} of its layers in float32 were seen there, and none with autocast"
        )
        cure = "open the region inside the function that the thread runs"
        return cls._of(region, why, {"layers_elsewhere": layers}, cure)

    @classmethod
    def _of(cls, region: Region, why: str, measured: dict[str, int], cure: str) -> Finding:
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning",
            subjects=(Subject(kind="op", name=f"autocast({region.device}, {region.format})"),),
            message=(
                f"Autocast to {region.format} on {region.device}{at(region.place)} changes nothing: {why}."
            ),
            locations=locations([region.place], [region.entered_at, region.elsewhere]),
            measured={
                "device": region.device,
                "format": region.format,
                "enabled": int(region.enabled),
                "entered": region.entered,
                **measured,
            },
            prescriptions=ranked([("autocast-region", cure)]),
        )


def _is_elsewhere(region: Region) -> bool:
    """Tell whether what a region was opened for runs in other threads, without autocast."""
    return bool(region.seen) and not region.products and region.layers_elsewhere >= MIN_LAYERS


def _is_idle(region: Region) -> bool:
    """Tell whether products ran in a region, and none of them in a low format."""
    total = sum(p.count for p in region.products)
    return total >= MIN_PRODUCTS and not any(p.format in LOW for p in region.products)


def _why(region: Region) -> str:
    devices = sorted({p.device for p in region.products})
    if not region.entered:
        return "it was made and never entered"
    if devices and region.device not in devices:
        off = "" if region.enabled else ", and torch has disabled it"
        return f"the region is for {region.device}, and what runs in it is on {several(devices)}{off}"
    if not region.enabled:
        return "torch has disabled it, and said so in a warning"
    if not region.products:
        return "no matrix product of a forward pass runs inside it"
    return "what runs inside it is not cast"


def _cure(region: Region) -> str:
    devices = sorted({p.device for p in region.products})
    if devices and region.device not in devices:
        return f'open it for the device of the tensors: torch.autocast("{devices[0]}", ...)'
    if not region.entered or not region.products:
        return "enclose the forward pass: with torch.autocast(...): output = model(inputs)"
    return "ask for a format that the device supports, bfloat16 or float16"
