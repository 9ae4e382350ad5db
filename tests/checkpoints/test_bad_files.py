"""What can't be read: one clear line, exit code 2, and nothing in the file is run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from precdoctor.checkpoints.checkpoint import CheckpointError
from precdoctor.checkpoints.open import open_checkpoint
from precdoctor.cli import main
from tests.checkpoints.build import saved, state, trained


class Evil:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which the command ends."""
    with pytest.raises(SystemExit) as end:
        main(["diff", str(path)], prog_name="precdoctor")
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"precdoctor: diff: {path}")
    assert "Traceback" not in line
    return line


def whole_torch(folder: Path) -> bytes:
    return saved(state(*trained()), folder / "whole").read_bytes()


def whole_safetensors(folder: Path) -> bytes:
    save_file({"a": torch.randn(100), "b": torch.randn(100)}, folder / "whole")
    return (folder / "whole").read_bytes()


def header(text: str, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


BAD: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty.pt": (lambda _: b"", "empty"),
    "text.safetensors": (lambda _: b"hello, this is a text and no checkpoint", "safetensors"),
    "text.pt": (lambda _: b"hello, this is a text and no checkpoint", "no checkpoint"),
    "model.gguf": (lambda _: b"GGUF" + bytes(100), "GGUF"),
    "weights.h5": (lambda _: b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "packed.gz": (lambda _: b"\x1f\x8b" + bytes(100), "unpack it"),
    "lfs.safetensors": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "half.pt": (lambda f: whole_torch(f)[:5000], "cut off"),
    "nearly.pt": (lambda f: whole_torch(f)[:-200], "cut off"),
    "zeros.pt": (lambda f: bytes(1000), "no checkpoint"),
    "scrambled.pt": (lambda f: b"PK\x03\x04" + whole_torch(f)[::-1], "torch cannot read it"),
    "half.safetensors": (lambda f: whole_safetensors(f)[:-500], "500 of its bytes are missing"),
    "header.safetensors": (lambda f: whole_safetensors(f)[:50], "cut off inside its header"),
    "tiny.safetensors": (lambda _: b"{}", "cut off inside its header"),
    "json.safetensors": (lambda _: header("[1, 2]"), "header is damaged"),
    "broken.safetensors": (lambda _: header('{"a": '), "header is damaged"),
    "deep.safetensors": (lambda _: header('{"a":' + "[" * 100_000), "header is damaged"),
    "negative.safetensors": (
        lambda _: header('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)), "at 'a'",
    ),
    "backwards.safetensors": (
        lambda _: header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', bytes(4)), "at 'a'",
    ),
    "size.safetensors": (
        lambda _: header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', bytes(4)), "another size",
    ),
    "fields.safetensors": (lambda _: header('{"a":{"dtype":"F32"}}'), "damaged at 'a'"),
    "nothing.safetensors": (lambda _: header("{}"), "no tensors"),
    "huge.safetensors": (lambda _: (1 << 60).to_bytes(8, "little") + b"{}", "header"),
    "index.json": (lambda _: b'{"a": 1}', "no weight_map"),
    "outside.index.json": (lambda _: b'{"weight_map": {"a": "../b.safetensors"}}', "outside its directory"),
    "missing.index.json": (lambda _: b'{"weight_map": {"a": "b.safetensors"}}', "b.safetensors is missing"),
    "none.index.json": (lambda _: b'{"weight_map": {}}', "lists no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, said = BAD[name]
    data = make(tmp_path)
    path = tmp_path / name
    path.write_bytes(data)
    assert said in refused(path, capsys)


def test_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in refused(tmp_path / "missing.pt", capsys)


def test_a_directory_with_nothing_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no checkpoint in this directory" in refused(tmp_path, capsys)


def test_a_directory_with_several_torch_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.pt", "b.pt"):
        saved({"w": torch.ones(2)}, tmp_path / name)
    assert "name the one" in refused(tmp_path, capsys)


def test_a_file_without_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved({"w": torch.ones(2)}, tmp_path / "a.pt")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    assert "Permission denied" in refused(path, capsys)


def test_a_file_without_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no tensors" in refused(saved({"epoch": 3}, tmp_path / "a.pt"), capsys)


def test_a_zip_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    assert "torch cannot read it" in refused(tmp_path / "a.zip", capsys)


def test_a_numpy_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    assert "numpy" in refused(tmp_path / "a.npy", capsys)


def test_a_whole_module_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(saved(trained()[0], tmp_path / "a.pt"), capsys)
    assert "torch.nn.modules" in line
    assert "state_dict" in line


@pytest.mark.parametrize("old", [True, False])
def test_a_torch_file_with_code_runs_nothing(
    old: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        {"w": torch.ones(2), "x": Evil(tmp_path / "ran")},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=not old,
    )
    assert "system" in refused(tmp_path / "a.pt", capsys)
    assert not (tmp_path / "ran").exists()


def test_a_plain_pickle_with_code_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    assert "not loaded" in refused(tmp_path / "a.bin", capsys)
    assert not (tmp_path / "ran").exists()


def test_an_optimizer_file_with_code_beside_sound_weights_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    saved({"state": Evil(tmp_path / "ran")}, folder / "optimizer.pt")
    assert "system" in refused(folder, capsys)
    assert not (tmp_path / "ran").exists()


def test_an_index_of_a_distributed_checkpoint_with_code_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "dcp"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    assert "system" in refused(folder, capsys)
    assert not (tmp_path / "ran").exists()


class Attribute:
    """Pickled as the attribute of a class that an index may name."""

    def __init__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> tuple[object, tuple[type, str]]:
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize(
    ("owner", "name"), [(torch.Size, "__subclasses__"), (_MEM_FORMAT_ENCODING, "__members__")]
)
def test_an_index_of_a_distributed_checkpoint_looks_up_members_only(
    owner: type, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "dcp"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Attribute(owner, name)))
    assert "builtins.getattr" in refused(folder, capsys)


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"\x80\x04nonsense", pickle.dumps([1, 2])])
def test_a_damaged_index_of_a_distributed_checkpoint(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".metadata").write_bytes(data)
    refused(tmp_path, capsys)


def test_a_shard_that_lacks_what_the_index_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}
    (tmp_path / "m.index.json").write_text(json.dumps(index))
    assert "'b' is here, and it is not" in refused(tmp_path, capsys)


def test_any_damage_is_one_error(tmp_path: Path) -> None:
    """Flip bytes all over: a file is read, or refused with the one exception that commands know."""
    generator = torch.Generator().manual_seed(0)
    messages = []
    for whole in (whole_torch(tmp_path), whole_safetensors(tmp_path)):
        for _ in range(150):
            data = bytearray(whole)
            for place in torch.randint(len(data), (4,), generator=generator).tolist():
                data[place] ^= 0xFF
            path = tmp_path / "damaged"
            path.write_bytes(data)
            try:
                open_checkpoint(path).entries()
            except CheckpointError as error:
                messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)
