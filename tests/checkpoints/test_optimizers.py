from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from precdoctor.checkpoints.open import open_checkpoint
from precdoctor.checkpoints.optimizers import looks_like_buffer, optimizers
from tests.checkpoints.build import saved, state


def stepped(model: nn.Module, optimizer: Any, shape: tuple[int, ...] = (4, 6)) -> dict[str, Any]:
    model(torch.randn(shape)).square().sum().backward()
    optimizer.step()
    return state(model, optimizer)


def owners(value: Any, path: Path, ordered: bool = True) -> tuple[dict[str, tuple[int, ...]], int]:
    """Return the shape of each matched weight's state, by name, and how many were not matched."""
    (found,) = optimizers(open_checkpoint(saved(value, path)).tree, ordered)
    return {".".join(where): o.tensors["exp_avg"].shape for where, o in found.owned.items()}, found.unknown


def assert_right(model: nn.Module, value: dict[str, Any], path: Path) -> None:
    """Check every match by the state itself: the second moment is that of the weight's own gradient."""
    (found,) = optimizers(open_checkpoint(saved(value, path)).tree, True)
    assert found.unknown == 0
    parameters = dict(model.named_parameters(remove_duplicate=True))
    assert {".".join(where[1:]) for where in found.owned} == set(parameters)
    for where, owned in found.owned.items():
        gradient = parameters[".".join(where[1:])].grad
        entry = owned.tensors["exp_avg"]
        stored = torch.frombuffer(
            bytearray(entry.source.open().read(0, entry.nbytes).tobytes()), dtype=torch.float32
        )
        assert torch.allclose(stored, 0.1 * gradient.flatten())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestMatches:
    def test_a_model_with_buffers_between_its_weights(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
        assert_right(model, stepped(model, torch.optim.Adam(model.parameters())), tmp_path / "a.pt")

    def test_groups_that_take_matrices_and_vectors_apart(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8))
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        value = stepped(model, torch.optim.AdamW(groups))
        assert_right(model, value, tmp_path / "a.pt")
        (found,) = optimizers(open_checkpoint(tmp_path / "a.pt").tree, True)
        assert found.owned["model", "1.weight"].group["weight_decay"] == 0.0
        assert found.owned["model", "2.weight"].group["weight_decay"] == 0.1

    def test_tied_weights_are_one_parameter(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6))
        model[2].weight = model[0].weight
        assert_right(model, stepped(model, torch.optim.Adam(model.parameters())), tmp_path / "a.pt")

    def test_an_optimizer_that_knows_names(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
        named = list(model.named_parameters())
        optimizer = torch.optim.Adam(named[::-1])
        assert_right(model, stepped(model, optimizer), tmp_path / "a.pt")


def test_weights_that_could_be_either_are_left_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    optimizer = torch.optim.Adam([*model[1].parameters(), *model[2].parameters()])
    found, unknown = owners(stepped(model, optimizer), tmp_path / "a.pt")
    assert found == {"model.2.weight": (3, 6), "model.2.bias": (3,)}
    assert unknown == 2


def test_without_the_models_order_only_shapes_that_occur_once_count(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    value = stepped(model, torch.optim.Adam(model.parameters()))
    found, unknown = owners(value, tmp_path / "a.pt", ordered=False)
    assert set(found) == {"model.0.weight", "model.1.weight", "model.2.weight", "model.2.bias"}
    assert unknown == 2


def test_state_of_another_model_is_not_matched(tmp_path: Path) -> None:
    model, other = nn.Linear(6, 8), nn.Linear(6, 9)
    value = stepped(model, torch.optim.Adam(model.parameters()))
    value["model"] = other.state_dict()
    assert owners(value, tmp_path / "a.pt") == ({}, 2)


def test_state_by_name_as_torch_distributed_flattens_it(tmp_path: Path) -> None:
    value = {
        "model": {"w": torch.ones(3), "b": torch.ones(3)},
        "optim": {
            "state.b.exp_avg": torch.zeros(3),
            "state.b.step": torch.tensor(1.0),
            "param_groups.b.lr": 0.1,
            "param_groups.w.lr": 0.2,
            "state.w.exp_avg": torch.zeros(3),
        },
    }
    (found,) = optimizers(open_checkpoint(saved(value, tmp_path / "a.pt")).tree, True)
    assert found.owned["model", "w"].group == {"lr": 0.2}
    assert found.owned["model", "b"].group == {"lr": 0.1}
    assert found.path == ("optim",)


@pytest.mark.parametrize(
    "groups", [None, 3, [], [3], [{}], [{"params": None}], {"0": {"params": {}}}, [{"params": "ab"}]]
)
def test_strange_groups_are_no_error(groups: Any, tmp_path: Path) -> None:
    value = {
        "w": torch.ones(2),
        "o": {"state": {0: {"exp_avg": torch.ones(2)}, 1: 5}, "param_groups": groups},
    }
    (found,) = optimizers(open_checkpoint(saved(value, tmp_path / "a.pt")).tree, True)
    assert not found.owned


def test_a_checkpoint_without_optimizer(tmp_path: Path) -> None:
    assert optimizers(open_checkpoint(saved({"w": torch.ones(2)}, tmp_path / "a.pt")).tree, True) == []


@pytest.mark.parametrize(
    "name",
    ["bn1.running_mean", "layers.0.self_attn.rotary_emb.inv_freq", "embeddings.position_ids",
     "attn.masked_bias", "rotary.cos_cached", "freqs_cis", "h.0.attn.mask"],
)  # fmt: skip
def test_names_that_buffers_have(name: str) -> None:
    assert looks_like_buffer(name)


@pytest.mark.parametrize(
    "name",
    ["bn1.weight", "attn.bias", "mask_token", "position_embeddings.weight", "norm.weight", "frequency.bias"],
)
def test_names_that_weights_have(name: str) -> None:
    assert not looks_like_buffer(name)
