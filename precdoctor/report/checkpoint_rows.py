"""What the reports say of checkpoints: rows of tensors, of formats for the next update, what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precdoctor.evidence import Contents, Histogram, Prognosis, Tensor
from precdoctor.report import words
from precdoctor.report.report import Report
from precdoctor.report.rows import quantiles, rank
from precdoctor.rules.finding import SEVERITIES, Severity
from precdoctor.rules.reading import merged
from precdoctor.rules.wording import number, size

#: columns of the table of tensors, for two files and for one
PAIR_COLUMNS = ("format", "elements", "identical", "ulps", "largest", "headroom", "remarks", "findings")
ONE_COLUMNS = ("format", "elements", "largest", "next update", "headroom", "remarks", "findings")
#: those of the table of formats
OUTLOOK_COLUMNS = ("format", "lost", "unchanged", "EDQ", "headroom")
PAIR_KEY = (
    "identical: share of the elements whose bits are the same. ulps, largest: median and largest distance of "
    "the others, in steps from one value of the format to the next. headroom: bits, median, of their travel "
    "over half an ulp."
)
ONE_KEY = (
    "next update: share of it that would be lost in the stored format. headroom: bits, median; below 0 the "
    "update is lost."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """What is shown of one tensor."""

    tensor: Tensor
    #: texts below `PAIR_COLUMNS` or `ONE_COLUMNS`
    cells: tuple[str, ...]
    rules: tuple[str, ...]
    severity: Severity | None

    @property
    def ill(self) -> bool:
        """Tell whether a finding of more than a note names it."""
        return self.severity in ("warning", "error")


def columns(contents: Contents) -> tuple[str, ...]:
    """Return the columns of the table of tensors."""
    return PAIR_COLUMNS if len(contents.files) == 2 else ONE_COLUMNS


def kept(rows: Sequence[TensorRow], names: Sequence[str]) -> list[str]:
    """Return the columns that say something of any of the rows."""
    return [name for index, name in enumerate(names) if any(row.cells[index].strip("-") for row in rows)]


def key(contents: Contents) -> str:
    """Return what the columns mean."""
    return PAIR_KEY if len(contents.files) == 2 else ONE_KEY


def tensor_rows(report: Report) -> list[TensorRow]:
    """Return the rows, those with findings first, then weights, buffers, state."""
    contents = report.evidence.contents
    if contents is None:
        return []
    named: dict[str, list[tuple[Severity, str]]] = {}
    for finding in report.findings:
        for subject in finding.subjects:
            named.setdefault(subject.name, []).append((finding.severity, finding.rule))
    rows = [_row(tensor, contents, named.get(tensor.name, [])) for tensor in contents.tensors]
    order = ("parameter", "buffer", "state")
    return sorted(rows, key=lambda row: (-rank(row.severity), order.index(row.tensor.kind)))


def _row(tensor: Tensor, contents: Contents, named: Sequence[tuple[Severity, str]]) -> TensorRow:
    rules = tuple(sorted({rule for _, rule in named}))
    known = (_format(tensor), words.count(_numel(tensor)))
    cells: tuple[str, ...]
    if len(contents.files) == 2:
        travel, moved = tensor.travel, tensor.identical is False
        share = None if travel is None else travel.identical_share
        cells = (
            words.percent(share) if travel is not None else "yes" if tensor.identical else "-",
            words.count(round(travel.ulps_median))
            if travel is not None and moved and travel.sampled
            else "-",
            words.count(round(travel.ulps_max)) if travel is not None and moved else "-",
            words.bits(quantiles(travel.headroom_bits)[1]) if travel is not None else "-",
        )
    else:
        stored = next((p for p in tensor.prognoses if p.stored), None)
        cells = (
            number(tensor.last.largest) if tensor.last is not None else "-",
            words.percent(stored.lost_share) if stored is not None and stored.intended else "-",
            words.bits(quantiles(stored.headroom_bits)[1]) if stored is not None else "-",
        )
    return TensorRow(
        tensor=tensor,
        cells=(*known, *cells, remarks(tensor, contents), " ".join(rules)),
        rules=rules,
        severity=max((severity for severity, _ in named), key=SEVERITIES.index, default=None),
    )


def remarks(tensor: Tensor, contents: Contents) -> str:
    """Return what is to be known of a tensor beside its numbers, in a few words."""
    last, said = tensor.last, []
    if len(contents.files) == 2 and tensor.second is None:
        said.append("only in the first")
    if len(contents.files) == 2 and tensor.first is None:
        said.append("only in the second")
    if tensor.first and tensor.second and tensor.first.shape != tensor.second.shape:
        said.append(f"{words.shape(tensor.first.shape)} -> {words.shape(tensor.second.shape)}")
    if last is not None and last.nan:
        said.append(f"{words.count(last.nan)} NaN")
    if last is not None and last.infinite:
        said.append(f"{words.count(last.infinite)} infinite")
    if last is not None and last.constant is not None and _numel(tensor) > 1:
        said.append(f"all {last.constant!r}")
    elif last is not None and last.ones:
        said.append(f"{words.count(last.ones)} are 1.0")
    if last is not None and last.fits:
        said.append(f"all {last.fits}")
    if tensor.travel is not None and tensor.travel.rounded:
        said.append("rounded only")
    if tensor.has_master:
        said.append("float32 master")
    return ", ".join(said)


def _format(tensor: Tensor) -> str:
    formats = [stored.format for stored in (tensor.first, tensor.second) if stored is not None]
    return " -> ".join(dict.fromkeys(formats))


def _numel(tensor: Tensor) -> int:
    amount = 1
    for extent in tensor.last.shape if tensor.last is not None else (0,):
        amount *= extent
    return amount


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatOutlook:
    """What one format would make of the next update of all weights."""

    format: str
    stored: bool
    intended: int
    #: shares (0..1) of the updates other than 0 that are lost, and of all elements that stay as they are
    lost_share: float
    unchanged_share: float
    #: mean over the elements with an update
    edq: float
    headroom_bits: Histogram

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the texts below `OUTLOOK_COLUMNS`."""
        name = f"{self.format} (stored)" if self.stored else self.format
        shares = (words.percent(self.lost_share), words.percent(self.unchanged_share))
        return name, *shares, words.edq(self.edq), words.bits(quantiles(self.headroom_bits)[1])


def outlooks(contents: Contents) -> list[FormatOutlook]:
    """Return the prognosis by format: the stored ones first, then those that were asked for."""
    sorts: dict[str, list[Prognosis]] = {}
    for tensor in contents.tensors:
        for prognosis in tensor.prognoses:
            sorts.setdefault(prognosis.format, []).append(prognosis)
    found = [_together(name, told) for name, told in sorts.items() if any(p.intended for p in told)]
    return sorted(found, key=lambda outlook: not outlook.stored)


def _together(name: str, told: Sequence[Prognosis]) -> FormatOutlook:
    intended, watched = sum(p.intended for p in told), sum(p.watched for p in told)
    lost = sum(p.lost_share * p.intended for p in told)
    return FormatOutlook(
        format=name,
        stored=any(p.stored for p in told),
        intended=intended,
        lost_share=lost / intended,
        unchanged_share=(lost + watched - intended) / watched,
        edq=sum((p.edq or 0.0) * p.intended for p in told) / intended,
        headroom_bits=merged(p.headroom_bits for p in told),
    )


def missing(contents: Contents) -> list[tuple[str, list[str]]]:
    """Return the names that only one file has, weights before state, with that file's path."""
    if len(contents.files) == 1:
        return []
    first, second = contents.files
    only = (
        (first.path, [t.name for t in contents.tensors if t.second is None]),
        (second.path, [t.name for t in contents.tensors if t.first is None]),
    )
    return [(path, names) for path, names in only if names]


def headroom_parts(report: Report, rows: Sequence[TensorRow]) -> list[tuple[bool, Histogram]]:
    """Return for each weight whether a finding names it, and the headroom of its travel or next update."""
    contents = report.evidence.contents
    assert contents is not None
    parts = []
    for row in rows:
        tensor, histogram = row.tensor, None
        if len(contents.files) == 2:
            histogram = tensor.travel.headroom_bits if tensor.travel is not None else None
        else:
            stored = next((p for p in tensor.prognoses if p.stored), None)
            histogram = stored.headroom_bits if stored is not None else None
        if tensor.kind == "parameter" and histogram is not None and histogram.total:
            parts.append((row.ill, histogram))
    return parts


def file_line(contents: Contents, index: int) -> str:
    """Return what a file is, in a line."""
    file = contents.files[index]
    text = f"{file.path}: {file.kind}, {words.count(file.tensors)} tensors, {size(file.nbytes)}"
    return text + (f", state of {', '.join(file.optimizers)}" if file.optimizers else "")
