"""What the package offers to `import precdoctor`."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import precdoctor


def test_version_is_the_installed_one() -> None:
    assert precdoctor.__version__ == importlib.metadata.version("precdoctor")


@pytest.mark.parametrize("name", sorted(precdoctor.__all__))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(precdoctor, name) is not None


def test_what_is_listed_is_what_is_public() -> None:
    public = {name for name in dir(precdoctor) if not name.startswith("_")}
    modules = {path.stem for path in Path(precdoctor.__file__).parent.iterdir()}
    assert public - modules - {"annotations"} <= set(precdoctor.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        precdoctor.no_such_name  # noqa: B018


def test_runs_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "precdoctor", "--version"], capture_output=True, text=True, check=True
    )
    assert importlib.metadata.version("precdoctor") in run.stdout
