"""Memory is bounded by what is looked at in one go, or by the largest tensor, not by the file."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

#: prints by how much the peak of the process's own memory grew, in MiB
PROBE = """
import resource, sys, torch
from precdoctor.checkpoints.api import examine
from precdoctor.checkpoints import distributed
import torch.distributed.checkpoint.metadata
examine(sys.argv[1])  # loads the code
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
examine(*sys.argv[2:])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
SIZE = 200 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in Linux's units")


def growth(small: Path, *files: Path) -> float:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, small, *files], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def weights(count: int) -> dict[str, torch.Tensor]:
    """Return that many tensors, 200 MiB together."""
    size = SIZE // 2 // count
    return {f"w{i}": torch.randn(size, dtype=torch.float32).bfloat16() for i in range(count)}


@pytest.mark.parametrize(("kind", "count"), [("safetensors", 1), ("pt", 20)])
def test_two_files_of_200_mib_are_compared_in_little_memory(count: int, kind: str, tmp_path: Path) -> None:
    value = weights(count)
    other = {name: w.clone() for name, w in value.items()}
    other["w0"][::7] *= 1.5
    files = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for file, each in zip(files, (value, other), strict=True):
        save_file(each, file) if kind == "safetensors" else torch.save(each, file)
    del value, other
    small = tmp_path / f"small.{kind}"
    few = {"w": torch.randn(100_000).bfloat16()}
    save_file(few, small) if kind == "safetensors" else torch.save(few, small)
    assert growth(small, *files) < 40


def test_of_a_distributed_checkpoint_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(weights(20), checkpoint_id=tmp_path / "large")
        dcp.save({"w": torch.randn(100_000).bfloat16()}, checkpoint_id=tmp_path / "small")
    # a tensor of 10 MiB, the bytes it came in, and what is copied on the way
    assert growth(tmp_path / "small", tmp_path / "large") < 60
