from __future__ import annotations

import enum
import io
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from precdoctor.checkpoints.checkpoint import Entry
from precdoctor.checkpoints.open import open_checkpoint
from tests.checkpoints.build import saved

TENSORS = {
    "float64": torch.randn(3, 4, dtype=torch.float64),
    "float32": torch.randn(2, 3, 4),
    "float16": torch.randn(5).half(),
    "bfloat16": torch.randn(7, 2).bfloat16(),
    "e4m3fn": torch.randn(9).to(torch.float8_e4m3fn),
    "e5m2": torch.randn(9).to(torch.float8_e5m2),
    "int64": torch.arange(6),
    "bool": torch.tensor([True, False]),
    "complex": torch.randn(4, dtype=torch.complex64),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
}


def content(entry: Entry) -> torch.Tensor:
    """Return the tensor, read in two parts of unequal length."""
    opened = entry.source.open()
    cut = entry.nbytes // 3
    raw = b"".join(opened.read(*span).tobytes() for span in ((0, cut), (cut, entry.nbytes)))
    opened.close()
    if not raw:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(bytearray(raw), dtype=entry.dtype).reshape(entry.shape)


def assert_holds(path: Path, expected: dict[str, torch.Tensor]) -> None:
    entries = {".".join(where): entry for where, entry in open_checkpoint(path).entries().items()}
    assert set(entries) == set(expected)
    for name, tensor in expected.items():
        assert (entries[name].dtype, entries[name].shape) == (tensor.dtype, tuple(tensor.shape))
        assert torch.equal(bits(content(entries[name])), bits(tensor))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def test_torch_files(tmp_path: Path) -> None:
    assert_holds(saved(TENSORS, tmp_path / "a.pt"), TENSORS)


def test_torch_files_of_the_old_format(tmp_path: Path) -> None:
    known = {name: tensor for name, tensor in TENSORS.items() if "float8" not in str(tensor.dtype)}
    torch.save(known, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert_holds(tmp_path / "a.pt", known)
    assert "old format" in open_checkpoint(tmp_path / "a.pt").limits[0]


def test_safetensors_files_as_their_library_writes_them(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert_holds(tmp_path / "a.safetensors", TENSORS)


def test_tensors_that_are_views_parameters_or_share_memory(tmp_path: Path) -> None:
    base = torch.randn(6, 8)
    value = {
        "transposed": base.t(),
        "column": base[:, 3],
        "row": base[2],
        "again": base[2],
        "expanded": torch.randn(1).expand(5),
        "parameter": nn.Parameter(torch.randn(3)),
    }
    path = saved(value, tmp_path / "a.pt")
    assert_holds(path, {name: tensor.detach() for name, tensor in value.items()})
    entries = open_checkpoint(path).entries()
    assert entries["row",].storage == entries["again",].storage
    assert entries["row",].storage != entries["column",].storage


def test_what_is_nested_is_found_by_its_path(tmp_path: Path) -> None:
    value = {"a": [torch.ones(1), {"b": torch.zeros(2)}], "epoch": 3, "name": "x", 7: (torch.ones(3),)}
    expected = {"a.0": torch.ones(1), "a.1.b": torch.zeros(2), "7.0": torch.ones(3)}
    assert_holds(saved(value, tmp_path / "a.pt"), expected)
    assert open_checkpoint(tmp_path / "a.pt").tree["epoch"] == 3


def test_a_file_that_is_one_tensor(tmp_path: Path) -> None:
    assert_holds(saved(torch.arange(4.0), tmp_path / "a.pt"), {"tensor": torch.arange(4.0)})


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    assert_holds(saved(TENSORS, tmp_path / "a.safetensors"), TENSORS)
    save_file(TENSORS, tmp_path / "b.pt")
    assert_holds(tmp_path / "b.pt", TENSORS)


def sharded(folder: Path) -> dict[str, torch.Tensor]:
    parts = [{"a": torch.randn(3), "b": torch.randn(4).half()}, {"c": torch.randn(2, 2)}]
    weight_map = {}
    for index, part in enumerate(parts, start=1):
        file = f"model-{index:05}-of-00002.safetensors"
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return parts[0] | parts[1]


@pytest.mark.parametrize("name", ["", "model.safetensors.index.json"])
def test_sharded_safetensors_by_directory_or_index(name: str, tmp_path: Path) -> None:
    expected = sharded(tmp_path)
    assert_holds(tmp_path / name, expected)


def test_sharded_torch_files(tmp_path: Path) -> None:
    saved({"a": torch.ones(2)}, tmp_path / "pytorch_model-1.bin")
    saved({"b": torch.zeros(2)}, tmp_path / "pytorch_model-2.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_holds(tmp_path, {"a": torch.ones(2), "b": torch.zeros(2)})


def test_a_trainers_directory_has_the_optimizers_state_in_a_file_of_its_own(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    saved(
        {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]},
        tmp_path / "optimizer.pt",
    )
    saved({"last_lr": 1.0}, tmp_path / "scheduler.pt")
    assert_holds(tmp_path, {"model.w": torch.ones(2), "optimizer.state.0.exp_avg": torch.zeros(2)})


def test_a_directory_with_one_torch_file(tmp_path: Path) -> None:
    saved({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    saved({"last_lr": 1.0}, tmp_path / "scheduler.pt")
    assert_holds(tmp_path, {"w": torch.ones(2)})


def test_torch_distributed_checkpoints(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    model = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3},
            checkpoint_id=tmp_path / "dcp",
        )
    state = optimizer.state_dict()["state"]
    expected = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    expected |= {
        f"optimizer.state.{i}.{key}": tensor for i, each in state.items() for key, tensor in each.items()
    }
    index = tmp_path / "dcp" / ".metadata"
    by_value = index.read_bytes()
    for written in (by_value, _by_name(pickle.loads(by_value))):
        index.write_bytes(written)
        assert_holds(tmp_path / "dcp", expected)
        tree = open_checkpoint(tmp_path / "dcp").tree
        assert tree["epoch"] == 3
        assert open_checkpoint(tmp_path / "dcp").kind == "torch distributed"


def _by_name(value: object) -> bytes:
    """Return a pickle in which members of enumerations are looked up by name, as by Python 3.11.2."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, item: Any) -> Any:
            return (getattr, (type(item), item.name)) if isinstance(item, enum.Enum) else NotImplemented

    file = io.BytesIO()
    Pickler(file).dump(value)
    assert b"getattr" in file.getvalue()
    return file.getvalue()


def test_a_tensor_in_several_shards_is_put_together(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import metadata
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    whole = torch.randn(4, 6)
    chunks, places, raw = [], {}, b""
    for rows in (slice(0, 3), slice(3, 4)):
        part = whole[rows].clone()
        offset, length = torch.Size([rows.start, 0]), len(raw)
        path = tmp_path / "part"
        torch.save(part, path)
        raw += path.read_bytes()
        path.unlink()
        chunks.append(metadata.ChunkStorageMetadata(offsets=offset, sizes=part.shape))
        places[metadata.MetadataIndex("w", offset)] = _StorageInfo("__0_0.distcp", length, len(raw) - length)
    (tmp_path / "__0_0.distcp").write_bytes(raw)
    told = metadata.TensorStorageMetadata(metadata.TensorProperties(dtype=torch.float32), whole.shape, chunks)
    index = metadata.Metadata(state_dict_metadata={"w": told}, storage_data=places)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(index))
    assert_holds(tmp_path, {"w": whole})
