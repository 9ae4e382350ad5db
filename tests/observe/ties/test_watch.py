"""Tied parameters: found when they are two tensors where steps begin, and not when they still are one."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from precdoctor.doctor import Doctor
from precdoctor.evidence import Tie
from precdoctor.observe.provenance.recorder import Provenance

SIZE, WIDTH = 40, 32


class Net(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SIZE, WIDTH)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, SIZE, bias=False)
        if tied:
            self.head.weight = self.embedding.weight  # here they are tied

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.embedding(tokens)).tanh())
        return out


def quantized(weight: Tensor) -> Tensor:
    scale = weight.detach().abs().amax() / 7
    return (weight.detach() / scale).round().clamp(-7, 7) * scale


class QuantizedHead(nn.Module):
    """A head of its own weight, of the shared one, or of a buffer."""

    def __init__(self, linear: nn.Linear, how: str) -> None:
        super().__init__()
        if how == "buffer":
            self.register_buffer("codes", quantized(linear.weight))
        else:
            self.weight = linear.weight if how == "shared" else nn.Parameter(linear.weight.detach().clone())

    def forward(self, hidden: Tensor) -> Tensor:
        if "codes" in self._buffers:
            return hidden @ self.codes.t()
        return hidden @ (self.weight + (quantized(self.weight) - self.weight).detach()).t()


def train(model: nn.Module, steps: int = 6, during: Callable[[int], None] | None = None) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        tokens, labels = torch.randint(SIZE, (2, 8, 12))
        if during is not None:
            during(step)
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def doctor() -> Iterator[Doctor]:
    torch.manual_seed(0)
    with Doctor(every=1) as doctor:
        yield doctor


def found(doctor: Doctor) -> list[Tie]:
    return list(doctor.evidence().ties)


def code(tie: Tie) -> tuple[str, str]:
    assert tie.made is not None
    assert tie.broken is not None
    return tie.made.code, tie.broken.code


TIED = "self.head.weight = self.embedding.weight  # here they are tied"


def test_leaves_torch_as_it_was() -> None:
    before = nn.Module.__setstate__
    with Doctor():
        assert torch_module._global_module_registration_hooks
    assert nn.Module.__setstate__ is before
    assert not torch_module._global_parameter_registration_hooks
    assert not torch_module._global_buffer_registration_hooks
    assert not torch_module._global_module_registration_hooks


def test_a_clone_in_one_place_is_a_broken_tie(doctor: Doctor) -> None:
    model = Net()
    model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
    train(model)
    (tie,) = found(doctor)
    assert (tie.kept, tie.apart, tie.kind, tie.how) == (
        "embedding.weight",
        "head.weight",
        "parameter",
        "assigned",
    )
    assert code(tie) == (TIED, "model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())")
    assert tie.numel == SIZE * WIDTH
    assert tie.extra_bytes == 4 * SIZE * WIDTH
    assert tie.similarity == pytest.approx(1)
    assert tie.distance_first == 0
    assert (tie.first_step, tie.last_step) == (0, 5)
    assert tie.distance_last == tie.difference_moved > 0.01
    assert tie.kept_moved > 0.01
    assert tie.apart_moved > 0.01


def test_the_numbers_are_those_of_the_whole_tensors(doctor: Doctor) -> None:
    model = Net()
    model.head.weight = nn.Parameter(quantized(model.embedding.weight))
    ends: list[tuple[Tensor, Tensor]] = []
    train(model, during=lambda _: ends.append((model.embedding.weight.clone(), model.head.weight.clone())))
    (a, b), (c, d) = ((x.detach().double(), y.detach().double()) for x, y in (ends[0], ends[5]))
    (tie,) = found(doctor)
    assert tie.similarity == pytest.approx(float(torch.corrcoef(torch.stack((a.ravel(), b.ravel())))[0, 1]))
    assert tie.distance_first == pytest.approx(float((a - b).norm() / a.norm()))
    assert tie.distance_last == pytest.approx(float((c - d).norm() / a.norm()))
    assert tie.kept_moved == pytest.approx(float((c - a).norm() / a.norm()))
    assert tie.apart_moved == pytest.approx(float((d - b).norm() / a.norm()))
    assert tie.difference_moved == pytest.approx(float(((c - d) - (a - b)).norm() / a.norm()))


@pytest.mark.parametrize("how", ["own", "buffer"])
def test_a_module_that_takes_the_place_of_a_tied_one_breaks_the_tie(doctor: Doctor, how: str) -> None:
    model = Net()
    model.head = QuantizedHead(model.head, how)
    train(model)
    (tie,) = found(doctor)
    assert (tie.kept, tie.apart) == ("embedding.weight", f"head.{'codes' if how == 'buffer' else 'weight'}")
    assert (tie.kind, tie.trainable) == (("buffer", False) if how == "buffer" else ("parameter", True))
    assert tie.how == "module replaced"
    assert code(tie) == (TIED, "model.head = QuantizedHead(model.head, how)")
    assert tie.similarity is not None
    assert tie.similarity > 0.98
    assert (tie.apart_moved == 0) == (how == "buffer")


def test_a_buffer_in_the_same_module_breaks_the_tie(doctor: Doctor) -> None:
    model = Net()
    weight = model.head.weight
    del model.head.weight
    model.head.register_buffer("weight", quantized(weight))
    train(model)
    (tie,) = found(doctor)
    assert (tie.apart, tie.kind, tie.how) == ("head.weight", "buffer", "registered")
    assert code(tie)[1] == 'model.head.register_buffer("weight", quantized(weight))'


def test_a_copied_module_breaks_the_tie(doctor: Doctor) -> None:
    model = Net()
    model.head = copy.deepcopy(model.head)
    train(model)
    assert [t.apart for t in found(doctor)] == ["head.weight"]


def test_a_replaced_module_around_a_tied_one_breaks_the_tie(doctor: Doctor) -> None:
    model = nn.Sequential(Net())
    model[0] = copy.deepcopy(model[0])  # this one is tied in itself
    train(model)
    assert found(doctor) == []
    outer = nn.Sequential(model[0].embedding, nn.Sequential(model[0].head))
    del model
    outer[1] = copy.deepcopy(outer[1])
    train(outer)
    (tie,) = found(doctor)
    assert (tie.kept, tie.apart) == ("0.weight", "1.0.weight")
    assert code(tie)[1] == "outer[1] = copy.deepcopy(outer[1])"


def test_a_copy_of_a_whole_model_may_lose_its_own_tie(doctor: Doctor) -> None:
    model = Net()
    other = copy.deepcopy(model)
    other.head = QuantizedHead(other.head, "own")
    train(model)
    assert [t.difference_moved for t in found(doctor)] == [0]
    train(other)
    (tie,) = found(doctor)
    assert tie.difference_moved > 0


def test_loading_by_assignment_breaks_the_tie(doctor: Doctor) -> None:
    model = Net()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    train(model)
    (tie,) = found(doctor)
    assert (tie.kept, tie.apart, tie.how) == ("embedding.weight", "head.weight", "load_state_dict")
    assert code(tie)[1] == "model.load_state_dict(state, assign=True)"


def test_loading_tensors_that_share_memory_keeps_the_tie(doctor: Doctor) -> None:
    model, file = Net(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True), assign=True)
    train(model)
    assert found(doctor) == []


def test_a_conversion_that_makes_new_parameters_breaks_the_tie() -> None:
    torch.manual_seed(0)
    with Provenance() as provenance, Doctor(every=1, provenance=provenance) as doctor:
        model = Net()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            model.to(torch.bfloat16)
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
        train(model)
    (tie,) = found(doctor)
    assert (tie.apart, tie.how) == ("head.weight", "module.to")
    assert code(tie) == (TIED, "model.to(torch.bfloat16)")


def test_a_module_put_into_the_table_of_modules_breaks_the_tie() -> None:
    torch.manual_seed(0)
    with Provenance() as provenance, Doctor(every=1, provenance=provenance) as doctor:
        model = Net()
        head = QuantizedHead(model.head, "own")
        model._modules["head"] = head
        train(model)
    (tie,) = found(doctor)
    assert tie.apart == "head.weight"
    assert "linear.weight.detach().clone()" in code(tie)[1]


def test_a_tie_that_is_broken_while_the_run_goes_on_is_found(doctor: Doctor) -> None:
    model = Net()

    def breaks(step: int) -> None:
        if step == 2:
            model.head = copy.deepcopy(model.head)

    train(model, 12, breaks)
    (tie,) = found(doctor)
    assert (tie.first_step, tie.last_step) == (2, 10)


def test_ties_that_were_made_before_are_found_by_looking() -> None:
    torch.manual_seed(0)
    model = Net()

    def breaks(step: int) -> None:
        if step == 2:
            model.head = copy.deepcopy(model.head)

    with Doctor(every=1) as doctor:
        train(model, 12, breaks)
    (tie,) = found(doctor)
    assert tie.made is None
    assert tie.broken is not None


def untied(_: Net) -> None: ...


def cast(model: Net) -> None:
    model.to(torch.float64)
    model.float()


def tied_again(model: Net) -> None:
    model.head = copy.deepcopy(model.head)
    model.head.weight = model.embedding.weight


def shared(model: Net) -> None:
    model.head = QuantizedHead(model.head, "shared")


def another_size(model: Net) -> None:
    model.head = nn.Linear(WIDTH, SIZE + 8, bias=False)


def weight_norm(model: Net) -> None:
    parametrizations.weight_norm(model.head)


def orthogonal(model: Net) -> None:
    parametrizations.orthogonal(model.embedding)


def weight_norm_of_old(model: Net) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(model.head)


def spectral_norm(model: Net) -> None:
    torch.nn.utils.spectral_norm(model.head)


def pruned(model: Net) -> None:
    prune.l1_unstructured(model.head, "weight", 0.5)


def averaged(model: Net) -> None:
    model.average = [AveragedModel(model)]  # type: ignore[assignment]


class Adapted(nn.Module):
    def __init__(self, base: nn.Module, size: int, out: int) -> None:
        super().__init__()
        self.base, self.size = base, size
        self.down, self.up = nn.Parameter(torch.randn(size, 4)), nn.Parameter(torch.zeros(4, out))

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.one_hot(x, self.size).float() if x.dtype == torch.int64 else x
        out: Tensor = self.base(x) + inner @ self.down @ self.up
        return out


def adapters(model: Net) -> None:
    model.embedding = Adapted(model.embedding, SIZE, WIDTH)  # type: ignore[assignment]
    model.head = Adapted(model.head, WIDTH, SIZE)  # type: ignore[assignment]


@pytest.mark.parametrize(
    "act",
    [
        untied,
        cast,
        tied_again,
        shared,
        another_size,
        weight_norm,
        weight_norm_of_old,
        spectral_norm,
        orthogonal,
        pruned,
        averaged,
        adapters,
    ],
)
def test_is_silent_about_what_only_looks_like_it(doctor: Doctor, act: Callable[[Net], None]) -> None:
    model = Net(tied=act is not untied)
    act(model)
    train(model)
    assert found(doctor) == []
    assert doctor.evidence().run.limits == ()


def test_what_is_broken_after_the_last_step_is_no_matter(doctor: Doctor) -> None:
    model = Net()
    train(model)
    model.head = copy.deepcopy(model.head)
    doctor.detach()
    assert found(doctor) == []


def test_remembers_no_more_modules_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precdoctor.observe.ties.homes._MODULES", 10)
    with Doctor() as doctor:
        for _ in range(50):
            Net()
        homes = doctor._ties.homes
        assert len(homes._nodes) <= 20
        assert len(homes._sides) <= 60
