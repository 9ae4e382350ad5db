"""Write the pages that are generated from the code: docs/rules/*.md, docs/remedies/*.md and docs/cli.md.

python docs/generate.py            write them
python docs/generate.py --check    exit 1, and say which, when one is stale
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from precdoctor.remedies import REMEDIES, Remedy
from precdoctor.rules import CATALOGUE, Rule

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "sample_models" / "rules"
#: folders in which every page is generated
FOLDERS = ("rules", "remedies")


def main(arguments: list[str]) -> int:
    """Write or check all pages; return the exit code."""
    pages = all_pages()
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text]
    leftover = [
        path for folder in FOLDERS for path in sorted((DOCS / folder).glob("*.md")) if path not in pages
    ]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(DOCS.parent)} is stale: run python docs/generate.py")
        for path in leftover:
            print(f"{path.relative_to(DOCS.parent)} is a page of nothing: run python docs/generate.py")
        return 1 if stale or leftover else 0
    for folder in FOLDERS:
        (DOCS / folder).mkdir(exist_ok=True)
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
        print(f"wrote {path.relative_to(DOCS.parent)}")
    for path in leftover:
        path.unlink()
        print(f"removed {path.relative_to(DOCS.parent)}")
    return 0


def all_pages() -> dict[Path, str]:
    """Return the text of every generated page, by its path."""
    import commands  # beside this file

    pages = {DOCS / "rules" / f"{rule.name}.md": rule_page(rule) for rule in CATALOGUE}
    pages[DOCS / "rules" / "README.md"] = rules_index()
    pages |= {DOCS / "remedies" / f"{remedy.id}.md": remedy_page(remedy) for remedy in REMEDIES}
    pages[DOCS / "remedies" / "README.md"] = remedies_index()
    pages[DOCS / "cli.md"] = commands.page()
    return pages


def rule_page(rule: type[Rule]) -> str:
    """Return the page of a rule: its docstring and its sample program."""
    source = (EXAMPLES / rule.example).read_text("utf-8").rstrip()
    options = next(
        (line.split(":", 1)[1].strip() + " " for line in source.splitlines() if "scan with:" in line), ""
    )
    files = next((line.split(":", 1)[1].strip() for line in source.splitlines() if "diff with:" in line), "")
    program = f"sample_models/rules/{rule.example}"
    found = (
        f"`precdoctor scan {options}{program}` finds it at the line marked `# expect`;\n"
        "with `--healthy` after the file's name the same program is healthy."
    )
    if files:
        found = (
            f"`python {program}` writes checkpoints, and `precdoctor diff {files}` finds it\n"
            "in them; with `--healthy` after the program's name they are healthy."
        )
    return f"""# {rule.id} {rule.name}

{inspect.cleandoc(rule.__doc__ or "")}

## Example

{found}

```python
{source}
```
"""


def rules_index() -> str:
    """Return the table of all rules."""
    first_lines = [inspect.cleandoc(rule.__doc__ or "").splitlines()[0] for rule in CATALOGUE]
    rows = [
        f"| {rule.id} | [{rule.name}]({rule.name}.md) | {line} |"
        for rule, line in zip(CATALOGUE, first_lines, strict=True)
    ]
    table = "\n".join(["| id | name | the illness |", "| --- | --- | --- |", *rows])
    return f"""# Rules

Each rule is one illness, judged from evidence alone. Its page is its docstring; `precdoctor explain PD101`
prints the same text. Generated from the code by `python docs/generate.py`.

{table}
"""


def remedy_page(remedy: type[Remedy]) -> str:
    """Return the page of a remedy: its docstring."""
    return f"# {remedy.id}\n\n{inspect.cleandoc(remedy.__doc__ or '')}\n"


def remedies_index() -> str:
    """Return the table of all remedies."""
    rows = [
        f"| [{remedy.id}]({remedy.id}.md) | {inspect.cleandoc(remedy.__doc__ or '').splitlines()[0]} |"
        for remedy in REMEDIES
    ]
    table = "\n".join(["| remedy | what it does |", "| --- | --- |", *rows])
    return f"""# Remedies

`precdoctor treat train.py` runs the program once more with each that its findings ask for, and says what it
did. Each page is a class's docstring; `precdoctor explain autocast` prints the same text. Generated from the
code by `python docs/generate.py`.

{table}
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
