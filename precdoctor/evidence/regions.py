"""What was seen of autocast regions: what was asked for, and in what formats products ran inside them."""

from __future__ import annotations

from dataclasses import dataclass

from precdoctor.evidence.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """Matrix products, convolutions and the like of forward passes on one device in one format."""

    #: type of the device, and format of the results
    device: str
    format: str
    #: how many ran, and how many of them had an operand that is trained
    count: int
    trained: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """An autocast region, by the line that opens it."""

    #: type of the device and format that were asked for
    device: str
    format: str
    #: as was asked for, and as torch made it: it disables what it can't do, with a warning
    requested: bool
    enabled: bool
    #: casts of weights are kept until the outermost region ends
    cached: bool = True
    #: the line that made it, and the one that entered it; None where a function is decorated with it
    place: Place | None = None
    entered_at: Place | None = None
    #: times it was entered; 0: it was made and let go of; and those while operations were looked at
    entered: int = 0
    seen: int = 0
    #: most optimizer steps between entry and exit
    steps_inside: int = 0
    #: optimizer steps made before it was entered for the last time
    last_step: int = 0
    #: inside it, while operations were looked at, but for what lies in regions that are disabled on purpose
    products: tuple[Product, ...] = ()
    #: calls of layers that are trained in float32, while it was open, that ran in other threads and without
    #: autocast; 0 where a layer ran in its own thread, or with autocast; and the line that called the model
    layers_elsewhere: int = 0
    elsewhere: Place | None = None
