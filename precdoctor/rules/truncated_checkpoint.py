"""PD702: a checkpoint in a coarser format than that of the training, which goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precdoctor.evidence import Contents, Evidence, Snapshot, Tensor
from precdoctor.rules.checkpoints import elements, holds_state, is_low, subjects, trainable
from precdoctor.rules.finding import Finding, Severity, Subject
from precdoctor.rules.prescriptions import ranked
from precdoctor.rules.reading import locations, stepped
from precdoctor.rules.round_trips import round_trips
from precdoctor.rules.rule import Rule
from precdoctor.rules.state_underflow import ERROR_SHARE, WARNING_SHARE
from precdoctor.rules.wording import at, count, number, percent


class TruncatedCheckpoint(Rule):
    """A checkpoint to go on from holds the weights in a coarser format than they are trained in.

    ## What it means

    Weights that are trained in float32 are rounded to 16 bits when they are saved, beside the optimizer's
    state, or loaded from such a file together with it. Or the state is rounded to save room, and what is
    small in it becomes 0: averages of squared gradients below 6e-8 in float16.

    ## Why it hurts

    Late in training a step is much smaller than half an ulp of bfloat16. Each resumption throws away what was
    learnt since the last one, and the loss jumps back; with a job that is pre-empted every hour the weights
    never leave their place. Of 60 jobs of 5 steps each 14 % of the way was kept. Where the second moment is 0
    the first steps after a resumption are divided by eps alone, and are thousands of times too large.

    ## Criterion

    Of the weights that an optimizer steps in float32, some are saved rounded to float16 or bfloat16, are not
    saved in full at the same step, and rounding changed them. An error where this process loaded such weights
    again and trained on from there; a warning where state of an optimizer was saved at the same step, or
    weights were loaded in 16 bits together with the state of their optimizer. Weights alone, to be used and
    not trained on, are no finding, nor are pretrained weights in 16 bits that a new optimizer starts from.
    Of optimizer state that is saved in 16 bits the elements count that are not 0 and become 0 or inf: a
    warning from 10 % on, an error from 50 % on where this process took it up again. Of state that is loaded
    in 16 bits, where it has no negative values, those that are 0 while another state of the same element is
    not.

    Without a file, too: float32 weights that `load_state_dict` gives their own values, rounded to 16 bits,
    three times or more, also by way of `torch.save` into a module that is new each time. What they moved from
    one load to the next is summed over eight loads and compared with what of it has arrived: an error below
    an EDQ of 0.7, a warning below 0.9, in the median (PD106 has the same limits), where all that was lost is
    more than the format's unit roundoff. Where a finer copy is kept (an evaluation in 16 bits, an outer loop
    in float32), what rounding cut off is there again at the next load. How much of it is, least squares say:
    the upper end of the 95 % interval has to be below half of it (measured: 0.0 to 0.2 without such a copy,
    1.0 with one). Targets, averages and the best weights of before are not a module's own values.

    In checkpoints (`precdoctor diff`): weights are in float32 in the first file and in 16 bits in the second;
    or they are in float32 and all their low bits are zero, down to those of a narrower format that is used
    to its last bits, for half of the float32 elements that are not constant or more. A warning where the
    last file holds the state of an optimizer, without float32 masters, so that training goes on from it;
    else a note.

    ## Blind spots

    `torch.save`, `Module.load_state_dict` and `Optimizer.load_state_dict` are seen; files that other
    libraries write are not. State that holds float32 copies of the weights in another shape is taken for
    none. Of what is loaded again and again, up to 16,384 elements of a module are looked at; where they move
    alike each time, and none ever gains a digit, a finer copy can't be told from none, and that is silence.

    ## Remedies

    Save the weights as they are trained, and a rounded copy beside them for use.

    ## References

    - Issues TensorAuto/OpenTau#185, facebookresearch/fairseq#2681, kohya-ss/sd-scripts#93, NVIDIA/apex#42
    - PyTorch documentation, Saving and loading models: a general checkpoint for resuming
    """

    id: ClassVar[str] = "PD702"
    name: ClassVar[str] = "truncated-checkpoint"
    example: ClassVar[str] = "truncated_checkpoint.py"

    @classmethod
    def criterion(cls, evidence: Evidence) -> list[Finding]:
        """Return a finding per line that saves, and per one that loads what nobody was seen to save."""
        if evidence.contents is not None:
            return cls._in_files(evidence.contents)
        saved = [s for s in evidence.snapshots if s.kind == "saved" and _severity(s)]
        known = {s.loaded_back for s in saved}
        loaded = [
            s for s in evidence.snapshots if s.kind == "loaded" and s.with_optimizer and s.place not in known
        ]
        states = [s for s in evidence.snapshots if _state_severity(s)]
        told = known | {s.place for s in loaded}
        trips = [
            f for f in round_trips(evidence, cls.id, cls.name) if not told & {x.place for x in f.locations}
        ]
        return [
            *(cls._finding(evidence, snapshot) for snapshot in (*saved, *loaded)),
            *(cls._state(snapshot) for snapshot in states),
            *trips,
        ]

    @classmethod
    def _state(cls, snapshot: Snapshot) -> Finding:
        (key,), loaded = snapshot.parameters, snapshot.kind == "loaded state"
        place = snapshot.cast or snapshot.place
        share = percent(snapshot.changed_share)
        text = f"{key} of an optimizer is {'loaded' if loaded else 'saved'} in {snapshot.format}{at(place)}: "
        if loaded:
            text += f"of {share} of the elements it is 0 while other state of theirs is not"
        else:
            text += f"{share} of the values that are not 0 become 0 or inf"
        if snapshot.loaded_back is not None:
            text += f"; this run goes on from there{at(snapshot.loaded_back)}"
        wide = "float32" if loaded else snapshot.trained
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=_state_severity(snapshot) or "warning",
            subjects=(Subject(kind="state", name=key),),
            message=text + ".",
            locations=locations([place], [snapshot.place, snapshot.loaded_back]),
            measured={
                "state": key,
                "elements": snapshot.numel,
                "format": snapshot.format,
                "lost_share": snapshot.changed_share,
                "times": snapshot.times,
            },
            prescriptions=ranked(
                [("full-checkpoint", f"save the state in {wide}; bfloat16 has its range, for half the room")]
            ),
        )

    @classmethod
    def _in_files(cls, contents: Contents) -> list[Finding]:
        """Return a finding for weights that were narrowed, and one for float32 that only pretends to be."""
        weights = [t for t in trainable(contents) if not t.has_master]
        narrowed = [t for t in weights if is_low(t.second) and t.first is not None and not is_low(t.first)]
        full = [t for t in weights if t.last is not None and not is_low(t.last) and t.last.constant is None]
        disguised = [t for t in full if t.last is not None and t.last.fits]
        if 2 * elements(disguised) < elements(full):
            disguised = []
        return [cls._file_finding(contents, tensors) for tensors in (narrowed, disguised) if tensors]

    @classmethod
    def _file_finding(cls, contents: Contents, tensors: Sequence[Tensor]) -> Finding:
        last, sample = tensors[0].last, tensors[0]
        assert last is not None
        held = last.fits or last.format
        share = error = 0.0
        weights, where = count(len(tensors), "weight"), contents.files[-1].path
        if last.fits:
            text = (
                f"{weights} in {where} are {last.format}, and every value is one of {held}: the low bits are "
                "zero. They were rounded, and the file is larger than what it holds"
            )
        else:
            travels = [t.travel for t in tensors if t.travel is not None]
            compared = sum(t.compared for t in travels) or 1
            share = sum(t.rounding_share * t.compared for t in travels) / compared
            error = max((t.rounding_error for t in travels), default=0.0)
            before = sample.first.format if sample.first is not None else "float32"
            text = f"{weights} are {before} in the first file and {held} in {where}"
            if travels:
                text += f": rounding changes {percent(share)} of the elements, by {number(error)} (rms)"
            if travels and all(t.rounded for t in travels):
                text += "; nothing else has changed"
        goes_on = holds_state(contents)
        if goes_on:
            text += ". The state of an optimizer is beside them: training that goes on has lost the low bits"
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity="warning" if goes_on else "note",
            subjects=subjects(tensors),
            message=text + ".",
            measured={
                "weights": len(tensors),
                "elements": elements(tensors),
                "format": held,
                "changed_share": share,
                "relative_error": error,
            },
            prescriptions=ranked([("full-checkpoint", "save the weights as they are trained")]),
        )

    @classmethod
    def _finding(cls, evidence: Evidence, snapshot: Snapshot) -> Finding:
        weights = f"{count(len(snapshot.parameters), 'weight')} trained in {snapshot.trained}"
        if snapshot.kind == "loaded":
            text = (
                f"{weights} are loaded in {snapshot.format}{at(snapshot.place)}, together with the state of "
                "their optimizer: what training had below the last digit is lost"
            )
        else:
            beside = "beside the optimizer's state" if snapshot.with_optimizer else "and loaded again"
            text = (
                f"{weights} are saved in {snapshot.format}{at(snapshot.cast or snapshot.place)}, {beside}: "
                f"rounding changes {percent(snapshot.changed_share)} of the elements"
            )
            if snapshot.relative_error:
                text += f" by {number(snapshot.relative_error)} of their size (rms)"
            step = _step_size(evidence)
            if step and snapshot.relative_error:
                text += f", as much as {number(snapshot.relative_error / step)} steps of training move them"
        back = snapshot.loaded_back
        if back is not None:
            text += f"; this run goes on from there{at(back)}"
        names = snapshot.parameters[:20] or ("weights",)
        return Finding(
            rule=cls.id,
            name=cls.name,
            severity=_severity(snapshot) or "warning",
            subjects=tuple(Subject(kind="parameter", name=name) for name in names),
            message=text + ".",
            locations=locations([snapshot.cast or snapshot.place], [snapshot.place, back]),
            measured={
                "weights": len(snapshot.parameters),
                "elements": snapshot.numel,
                "format": snapshot.format,
                "changed_share": snapshot.changed_share,
                "relative_error": snapshot.relative_error,
                "times": snapshot.times,
            },
            prescriptions=ranked(
                [("full-checkpoint", f"save the weights in {snapshot.trained}, as they are trained")]
            ),
        )


def _severity(snapshot: Snapshot) -> Severity | None:
    """Return how grave a snapshot is that was saved; None for weights that nobody trains on from."""
    if snapshot.with_full or snapshot.kind not in ("saved", "loaded"):
        return None
    if snapshot.kind == "saved" and snapshot.loaded_back is not None:
        return "error"
    return "warning" if snapshot.with_optimizer else None


def _state_severity(snapshot: Snapshot) -> Severity | None:
    """Return how grave a snapshot of an optimizer's state is; None where little of it is lost."""
    if snapshot.kind not in ("state", "loaded state") or snapshot.changed_share < WARNING_SHARE:
        return None
    resumed = snapshot.kind == "loaded state" or snapshot.loaded_back is not None
    return "error" if resumed and snapshot.changed_share >= ERROR_SHARE else "warning"


def _step_size(evidence: Evidence) -> float:
    """Return by how much a step is meant to change the median weight, relative to it; 0 where not known."""
    sizes = sorted(i.updates.relative_rms for i in stepped(evidence) if i.updates.relative_rms > 0)
    return sizes[len(sizes) // 2] if sizes else 0.0
