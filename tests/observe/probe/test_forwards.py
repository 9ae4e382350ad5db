"""The lines that call a model are recorded, those inside it and of losses are not."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
from torch import nn

from precdoctor.evidence import Forward
from precdoctor.observe.models import Usage
from precdoctor.observe.provenance.source import Source


@pytest.fixture
def forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the text of a file and gives the calls of models seen in it."""
    monkeypatch.chdir(tmp_path)

    def observe(text: str) -> list[Forward]:
        path = tmp_path / "train.py"
        path.write_text(textwrap.dedent(text))
        code: CodeType = compile(path.read_text(), str(path), "exec")
        usage = Usage()
        usage.start()
        try:
            exec(code, {"torch": torch, "nn": nn})
        finally:
            usage.stop()
        return list(usage.forwards.found(Source()))

    return observe


def test_records_the_lines_that_call_a_model_once(forwards: Any) -> None:
    seen = forwards("""
        class Trainer:
            def __init__(self):
                self.model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
                self.criterion = nn.MSELoss()

            def step(self, x):
                return self.criterion(self.model(x), x)

        for _ in range(2):
            Trainer().step(torch.ones(2))
        """)
    (forward,) = seen
    assert (forward.place.file, forward.place.function) == ("train.py", "step")
    assert forward.place.code == "return self.criterion(self.model(x), x)"
    assert (forward.device, forward.autocast) == ("cpu", "")
    assert forward.expression == ("self.model" if sys.version_info >= (3, 11) else "")


def test_tells_calls_under_autocast(forwards: Any) -> None:
    seen = forwards("""
        net = nn.Linear(2, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            net(torch.ones(2))
        net(torch.ones(2))
        """)
    assert [forward.autocast for forward in seen] == ["bfloat16", ""]


def test_does_not_take_a_library_for_the_users_code(forwards: Any) -> None:
    assert forwards("nn.DataParallel(nn.Linear(2, 2)).module(torch.ones(2))") != []
    assert forwards("list(map(torch.vmap(lambda x: x), [torch.ones(2)]))") == []
    assert (
        forwards("torch.utils.checkpoint.checkpoint(nn.Linear(2, 2), torch.ones(2), use_reentrant=False)")
        == []
    )
