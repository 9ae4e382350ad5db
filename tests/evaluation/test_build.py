"""What a user's file may be, and the one line that every other thing gets."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from precdoctor.evaluation import EvaluationError, check_model, load, to_device

GOOD = """
import torch
def build():
    return torch.nn.Linear(2, 2), [(torch.zeros(3, 2), torch.zeros(3, 2))], torch.nn.MSELoss()
"""


@pytest.fixture(autouse=True)
def _path_and_modules_as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def written(folder: Path, text: str, name: str = "evaluate_me.py") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_returns_what_build_returns(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD)
    found = load(f"{file}:build")
    assert isinstance(found.model, torch.nn.Linear)
    assert found.name == f"{file}:build"
    assert isinstance(found.loss, torch.nn.MSELoss)


def test_the_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    written(tmp_path, "SIZE = 5", "beside_it.py")
    file = written(tmp_path, "from beside_it import SIZE\n" + GOOD.replace("Linear(2, 2)", "Linear(2, SIZE)"))
    model = load(f"{file}:build").model
    assert isinstance(model, torch.nn.Linear)
    assert model.out_features == 5


def test_a_file_with_the_name_of_a_module_does_not_replace_it(tmp_path: Path) -> None:
    import json

    file = written(tmp_path, GOOD, "json.py")
    load(f"{file}:build")
    assert sys.modules["json"] is json


def test_what_the_file_prints_does_not_go_to_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(
        tmp_path, "print('loading')\n" + GOOD.replace("def build():", "def build():\n    print('b')")
    )
    load(f"{file}:build")
    assert capsys.readouterr().out == ""


LINE = "return torch.nn.Linear(2, 2), [(torch.zeros(3, 2), torch.zeros(3, 2))], torch.nn.MSELoss()"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def other(): pass", r"has no function 'build'; it has other"),
        ("x = 1", r"has no function 'build', nor any other function"),
        ("build = 3", r"'build' is a int, not a function"),
        ("def build(:", r":1: not valid Python"),
        ("import not_a_module_at_all", r":1: ModuleNotFoundError: No module named 'not_a_module_at_all'"),
        ("raise SystemExit(3)", r":1: SystemExit: 3 when it was run"),
        ("def build():\n    return 1 / 0", r":2: ZeroDivisionError: division by zero in build\(\)"),
        ("def build(size):\n    return size", r"TypeError: .*missing.*without arguments"),
        (
            GOOD.replace(LINE, "return None"),
            r"build\(\) returned None; it must return \(model, batches, loss",
        ),
        (GOOD.replace(LINE, "return torch.nn.Linear(2, 2)"), r"returned one Linear; it must return"),
        (GOOD.replace(LINE, "return 1, 2"), r"returned 2 values \(int, int\); it must return"),
        (GOOD.replace("torch.nn.Linear(2, 2)", "'m'"), r"the model is a str; it must be a torch.nn.Module"),
        (GOOD.replace("[(torch.zeros(3, 2), torch.zeros(3, 2))]", "5"), r"the batches are a int; .*iterable"),
        (GOOD.replace("torch.nn.MSELoss()", "0.5"), r"the loss is a float; it must be a function"),
        (GOOD.replace("torch.nn.Linear(2, 2)", "torch.nn.ReLU()"), r"the model has no parameters"),
    ],
)
def test_one_line_says_what_is_wrong_with_the_file(tmp_path: Path, text: str, told: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(EvaluationError) as caught:
        load(f"{file}:build")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(file)
    assert re.search(told, line), line


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("nothing.py:build", "no such file"),
        ("nothing.py", "give FILE.py:FUNCTION"),
        (":build", "give FILE.py:FUNCTION"),
        ("nothing.py:", "give FILE.py:FUNCTION"),
        ("nothing.py:a b", "give FILE.py:FUNCTION"),
    ],
)
def test_one_line_says_how_a_target_is_written(target: str, told: str) -> None:
    with pytest.raises(EvaluationError, match=told):
        load(target)


def test_a_directory_or_another_kind_of_file_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is a directory"):
        load(f"{tmp_path}:build")
    with pytest.raises(EvaluationError, match="not a Python file"):
        load(written(tmp_path, "x", "model.pt") + ":build")


def test_a_model_on_meta_says_how_to_get_it_off(tmp_path: Path) -> None:
    meta = GOOD.replace("Linear(2, 2)", "Linear(2, 2, device='meta')")
    found = load(written(tmp_path, meta) + ":build")
    with pytest.raises(EvaluationError, match=r"weight is on the meta device .* model.to_empty"):
        check_model(found)


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    found = load(written(tmp_path, GOOD) + ":build")
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(EvaluationError, match="leave --device out"):
            to_device(found, device)
