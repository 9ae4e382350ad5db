"""Evidence and treatments made by hand for source text on disk."""

from __future__ import annotations

import textwrap
from pathlib import Path

from precdoctor.evidence import Cast, Evidence, Forward, Group, Optimizer, Parameter, Place, Run, Updates
from precdoctor.fix.candidates import write
from precdoctor.fix.edits import Treatment
from precdoctor.rules import Finding, Prescription, Subject


def place(file: str, fragment: str) -> Place:
    """Return the only line of a file in the working directory that contains a fragment."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, start=1) if fragment in line]
    assert len(found) == 1, f"{fragment!r} is in {len(found)} lines"
    return Place(file=file, line=found[0], code=lines[found[0] - 1].strip())


def frozen(names: tuple[str, ...], remedy: str, settings: dict[str, float | str] | None = None) -> Finding:
    return Finding(
        rule="PD101",
        name="frozen-parameter",
        severity="error",
        subjects=tuple(Subject(kind="parameter", name=name) for name in names),
        message="frozen.",
        prescriptions=(Prescription(remedy=remedy, rank=1, why="for the test", settings=settings or {}),),
    )


def treatment(
    remedy: str,
    parameters: tuple[Parameter, ...],
    *,
    settings: dict[str, float | str] | None = None,
    ill: tuple[str, ...] = (),
    forwards: tuple[Forward, ...] = (),
    optimizers: tuple[Optimizer, ...] = (),
) -> Treatment:
    finding = frozen(ill or tuple(p.name for p in parameters), remedy, settings)
    evidence = Evidence(
        run=Run(target="train.py"), parameters=parameters, forwards=forwards, optimizers=optimizers
    )
    return Treatment.of([(finding, finding.prescriptions[0])], evidence)


def parameter(
    name: str = "weight",
    *,
    cast: str = "",
    how: str = "module.to",
    file: str = "train.py",
    constant: str = "",
    created: str = "",
    format: str = "bfloat16",
    optimizer: int | None = 0,
    group: int | None = 0,
) -> Parameter:
    change = None
    if cast:
        source = place(file, constant) if constant else None
        change = Cast(before="float32", after=format, how=how, place=place(file, cast), constant=source)
    return Parameter(
        name=name,
        format=format,
        shape=(4,),
        watched=4,
        optimizer=optimizer,
        group=group,
        cast=change,
        created=place(file, created) if created else None,
        updates=Updates(replay="elementwise", intended=100),
    )


def forward(fragment: str, expression: str = "model", file: str = "train.py", autocast: str = "") -> Forward:
    return Forward(place=place(file, fragment), expression=expression, device="cpu", autocast=autocast)


def optimizer(
    fragment: str, groups: int = 1, type: str = "torch.optim.adamw.AdamW", file: str = "train.py"
) -> Optimizer:
    line = place(file, fragment)
    group = Group(betas=(0.9, 0.999), eps=1e-8, place=line)
    return Optimizer(type=type, place=line, groups=(group,) * groups)


def save(text: str, file: str = "train.py") -> None:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).removeprefix("\n"), encoding="utf-8")


def edited(asked: Treatment, file: str = "train.py") -> str:
    """Return a file of the working directory as the treatment edits it."""
    changes = write(asked, Path.cwd()).changes
    return changes[Path(file).resolve()][1].decode()


def text(source: str) -> str:
    return textwrap.dedent(source).removeprefix("\n")
