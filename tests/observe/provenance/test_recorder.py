"""Provenance names the user's line, keeps nothing alive and leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import importlib.util
import inspect
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from precdoctor.evidence import Cast, Place
from precdoctor.observe.provenance.recorder import Provenance

Write = Any


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes a file into the working directory and imports it."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, name: str = "train") -> ModuleType:
        path = tmp_path / f"{name}.py"
        path.write_text("import copy, io\nimport torch\nfrom torch import nn\n" + text)
        spec = importlib.util.spec_from_file_location(f"user_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def provenance(write: Write) -> Iterator[Provenance]:  # the working directory comes first
    with Provenance() as provenance:
        yield provenance
    assert provenance.limits == []


def line(place: Place | None) -> str:
    assert place is not None
    return place.code


def of(cast: Cast | None) -> tuple[str, str, str, str]:
    assert cast is not None
    return cast.before, cast.after, cast.how, line(cast.place)


PATCHED = [
    (nn.Module, "_apply"),
    (nn.Module, "__setstate__"),
    (nn.Parameter, "__deepcopy__"),
    (torch.optim.Optimizer, "__init__"),
    (torch.optim.Optimizer, "add_param_group"),
    (torch, "set_default_dtype"),
    (torch.autograd, "backward"),
]


def test_leaves_torch_as_it_was() -> None:
    before = [inspect.getattr_static(owner, name) for owner, name in PATCHED]
    with Provenance():
        during = [inspect.getattr_static(owner, name) for owner, name in PATCHED]
        assert all(a is not b for a, b in zip(before, during, strict=True))
        assert torch_module._global_parameter_registration_hooks
    assert [inspect.getattr_static(owner, name) for owner, name in PATCHED] == before
    assert not torch_module._global_parameter_registration_hooks


def test_leaves_torch_as_it_was_when_the_run_raises() -> None:
    before = nn.Module._apply
    with pytest.raises(ZeroDivisionError), Provenance():
        _ = 1 / 0
    assert nn.Module._apply is before


def test_goes_idle_when_somebody_patched_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = nn.Module._apply
    with Provenance():
        ours = nn.Module._apply
        monkeypatch.setattr(nn.Module, "_apply", lambda module, *args: ours(module, *args))
    nn.Linear(1, 1).half()
    assert nn.Module._apply is not ours
    monkeypatch.setattr(nn.Module, "_apply", original)


def test_creation_is_the_innermost_line_of_the_user(provenance: Provenance, write: Write) -> None:
    made = write(
        "class Norm(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.weight = nn.Parameter(torch.ones(3))\n"
        "def build():\n"
        "    return nn.Sequential(nn.Linear(2, 3), Norm())\n"
        "model = build()\n"
    )
    place = provenance.creation(made.model[1].weight)
    assert place == Place(
        file="train.py",
        line=7,
        function="__init__",
        code="self.weight = nn.Parameter(torch.ones(3))",
        certain=True,
    )
    assert line(provenance.creation(made.model[0].weight)) == "return nn.Sequential(nn.Linear(2, 3), Norm())"
    assert provenance.cast(made.model[0].weight) is None


@pytest.mark.parametrize(
    ("call", "how", "after"),
    [
        ("model.to(torch.bfloat16)", "module.to", "bfloat16"),
        ("model.bfloat16()", "module.bfloat16", "bfloat16"),
        ("model.half()", "module.half", "float16"),
        ("model.type(torch.float16)", "module.type", "float16"),
    ],
)
def test_a_cast_is_placed_at_its_line(
    provenance: Provenance, write: Write, call: str, how: str, after: str
) -> None:
    made = write(f"model = nn.Linear(2, 2)\n{call}\n")
    assert of(provenance.cast(made.model.weight)) == ("float32", after, how, call)


def test_the_last_cast_is_the_one_that_counts(provenance: Provenance, write: Write) -> None:
    made = write("model = nn.LSTM(2, 2).half()\nmodel.to('cpu')\nmodel.bfloat16()\nmodel.to('cpu')\n")
    assert of(provenance.cast(made.model.weight_ih_l0))[::3] == ("float16", "model.bfloat16()")


def test_a_cast_in_a_chain_over_lines_is_placed_at_the_method(provenance: Provenance, write: Write) -> None:
    made = write("model = nn.Sequential(\n    nn.Linear(2, 2),\n).to(\n    torch.bfloat16)\n")
    place = provenance.cast(made.model[0].weight)
    assert place is not None
    assert line(place.place) == ").to("


def test_a_cast_through_a_helper_in_another_file_is_placed_there(
    provenance: Provenance, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "precision_helper.py").write_text("def cast(model):\n    return model.bfloat16()\n")
    made = write("import precision_helper\nmodel = precision_helper.cast(nn.Linear(2, 2))\n")
    cast = provenance.cast(made.model.weight)
    assert cast is not None
    assert cast.place is not None
    assert (cast.place.file, cast.place.line, cast.place.function) == ("precision_helper.py", 2, "cast")


def test_a_line_outside_the_working_directory_has_an_absolute_path(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with Provenance() as provenance:
        made = write("model = nn.Linear(2, 2)\n")
        place = provenance.creation(made.model.weight)
    assert place is not None
    assert place.file == str(tmp_path / "train.py")
    assert place.code == "model = nn.Linear(2, 2)"


@pytest.mark.parametrize("overwrite", ["overwrite_module_params", "swap_module_params"])
def test_casts_are_seen_when_conversion_replaces_or_swaps(
    provenance: Provenance, write: Write, overwrite: str
) -> None:
    made = write(
        f"torch.__future__.set_{overwrite}_on_conversion(True)\n"
        "try:\n    model = nn.Linear(2, 2)\n    model.half()\n"
        f"finally:\n    torch.__future__.set_{overwrite}_on_conversion(False)\n"
    )
    assert of(provenance.cast(made.model.weight)) == ("float32", "float16", "module.half", "model.half()")
    assert line(provenance.creation(made.model.weight)) == "model = nn.Linear(2, 2)"


def test_loading_a_low_checkpoint_by_assignment_is_a_cast(provenance: Provenance, write: Write) -> None:
    made = write(
        "state = {k: v.bfloat16() for k, v in nn.Linear(2, 2).state_dict().items()}\n"
        "with torch.device('meta'):\n"
        "    model = nn.Linear(2, 2)\n"
        "model.load_state_dict(state, assign=True)\n"
    )
    loaded = "model.load_state_dict(state, assign=True)"
    assert of(provenance.cast(made.model.weight)) == ("float32", "bfloat16", "load_state_dict", loaded)
    assert line(provenance.creation(made.model.weight)) == "model = nn.Linear(2, 2)"


def test_a_replaced_parameter_is_a_cast(provenance: Provenance, write: Write) -> None:
    replace = "model.weight = nn.Parameter(model.weight.detach().half())"
    made = write(f"model = nn.Linear(2, 2)\n{replace}\n")
    assert of(provenance.cast(made.model.weight)) == ("float32", "float16", "replaced", replace)


def test_creation_in_a_low_format_says_so(provenance: Provenance, write: Write) -> None:
    made = write("model = nn.Linear(2, 2, dtype=torch.bfloat16)\n")
    assert of(provenance.cast(made.model.weight))[:3] == ("", "bfloat16", "created")


def test_a_low_default_dtype_is_placed_where_it_was_set(provenance: Provenance, write: Write) -> None:
    made = write(
        "torch.set_default_dtype(torch.bfloat16)\n"
        "try:\n    model = nn.Linear(2, 2)\nfinally:\n    torch.set_default_dtype(torch.float32)\n"
        "other = nn.Linear(2, 2)\n"
    )
    setting = "torch.set_default_dtype(torch.bfloat16)"
    assert of(provenance.cast(made.model.weight)) == ("float32", "bfloat16", "default dtype", setting)
    assert provenance.cast(made.other.weight) is None


def test_an_assignment_to_data_is_found_in_the_source(provenance: Provenance, write: Write) -> None:
    assign = "    p.data = p.data.half()"
    made = write(f"model = nn.Linear(2, 2)\nfor p in model.parameters():\n{assign}\n")
    cast = provenance.cast(made.model.weight)
    assert of(cast) == ("float32", "float16", "data assignment", assign.strip())
    assert cast is not None
    assert cast.place is not None
    assert not cast.place.certain


def test_a_copy_inherits_where_the_original_came_from(provenance: Provenance, write: Write) -> None:
    made = write(
        "model = nn.Linear(2, 2)\nmodel.half()\ntwin = copy.deepcopy(model)\nalias = copy.copy(model)\n"
    )
    assert of(provenance.cast(made.twin.weight))[3] == "model.half()"
    assert line(provenance.creation(made.twin.weight)) == "model = nn.Linear(2, 2)"
    assert provenance.created_at(made.twin.weight) > provenance.created_at(made.model.weight)  # type: ignore[operator]
    assert of(provenance.cast(made.alias.weight))[3] == "model.half()"


def test_tied_weights_are_one_parameter(provenance: Provenance, write: Write) -> None:
    made = write(
        "model = nn.ModuleDict({'wte': nn.Embedding(3, 2), 'head': nn.Linear(2, 3, bias=False)})\n"
        "model['head'].weight = model['wte'].weight\n"
        "model.half()\n"
        "del model['wte']\n"
    )
    assert of(provenance.cast(made.model["head"].weight))[3] == "model.half()"


def test_places_of_an_optimizer_and_its_groups(provenance: Provenance, write: Write) -> None:
    made = write(
        "class Mine(torch.optim.SGD):\n"
        "    def __init__(self, params, lr):\n"
        "        super().__init__(params, lr=lr)\n"
        "a, b = nn.Linear(2, 2), nn.Linear(2, 2)\n"
        "opt = Mine([{'params': a.weight}, {'params': a.bias, 'lr': 1.0}], lr=0.1)\n"
        "opt.add_param_group({'params': b.parameters(), 'lr': 2.0})\n"
    )
    constructed = "opt = Mine([{'params': a.weight}, {'params': a.bias, 'lr': 1.0}], lr=0.1)"
    assert line(provenance.optimizer_place(made.opt)) == constructed
    assert [line(provenance.group_place(made.opt, i)) for i in range(2)] == [constructed] * 2
    added = "opt.add_param_group({'params': b.parameters(), 'lr': 2.0})"
    assert line(provenance.group_place(made.opt, 2)) == added
    assert provenance.group_place(made.opt, 3) is None


def test_tells_parameters_made_after_the_optimizer(provenance: Provenance, write: Write) -> None:
    made = write(
        "model = nn.ModuleDict({'wte': nn.Embedding(3, 2)})\n"
        "opt = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "model['wte'] = nn.Embedding(4, 2)\n"
    )
    constructed = provenance.constructed_at(made.opt)
    assert constructed is not None
    (stale,) = made.opt.param_groups[0]["params"]
    assert provenance.created_at(stale) < constructed < provenance.created_at(made.model["wte"].weight)  # type: ignore[operator]
    assert line(provenance.creation(stale)) == "model = nn.ModuleDict({'wte': nn.Embedding(3, 2)})"


def test_knows_where_parameters_took_the_place_of_others(provenance: Provenance, write: Write) -> None:
    made = write(
        "model = nn.Linear(2, 2)\n"
        "state = {k: v.clone() for k, v in model.state_dict().items()}\n"
        "first = model.weight\n"
        "model.load_state_dict(state, assign=True)\n"
    )
    assert provenance.replacement(made.first) is None
    assert line(provenance.replacement(made.model.weight)) == "model.load_state_dict(state, assign=True)"
    assert line(provenance.creation(made.model.weight)) == "model = nn.Linear(2, 2)"


def test_a_parameter_that_took_the_address_of_a_dead_one_is_not_known(provenance: Provenance) -> None:
    module = nn.Linear(2, 2)
    history = provenance._histories.of(module.weight)
    assert history is not None
    provenance._histories.remember(raw := nn.Parameter(torch.zeros(2)), history)
    assert provenance.created_at(module.weight) is not None
    assert provenance.created_at(raw) is None


@pytest.mark.usefixtures("provenance")
def test_keeps_nothing_alive_and_holds_no_weak_reference_to_a_tensor() -> None:
    model = nn.Linear(2, 2).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert not weakref.getweakrefs(model.weight)
    gone = [weakref.ref(model), weakref.ref(optimizer)]
    del model, optimizer
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_backward_tells_the_line_and_the_losses(provenance: Provenance, write: Write) -> None:
    seen: list[tuple[float, str]] = []
    provenance.on_backward(lambda losses, place: seen.append((sum(t.item() for t in losses), line(place))))
    write(
        "w = torch.ones(2, requires_grad=True)\n"
        "w.sum().backward()\n"
        "torch.autograd.backward([(2 * w).sum()])\n"
        "torch.autograd.backward(t for t in [w.sum()])\n"
        "h = torch.utils.checkpoint.checkpoint(torch.tanh, w, use_reentrant=True)\n"
        "(0 * h).sum().backward()\n"
    )
    assert seen == [
        (2.0, "w.sum().backward()"),
        (4.0, "torch.autograd.backward([(2 * w).sum()])"),
        (0, "torch.autograd.backward(t for t in [w.sum()])"),
        (0.0, "(0 * h).sum().backward()"),
    ]
    assert line(provenance.backward_place) == "w.sum().backward()"


def test_a_failing_callback_is_no_matter_of_the_run(write: Write) -> None:
    def fail(losses: Any, place: Place | None) -> None:
        raise ValueError(f"{len(losses)} {place is None}")

    with Provenance() as provenance:
        provenance.on_backward(fail)
        made = write("w = torch.ones(2, requires_grad=True)\nw.sum().backward()\nw.sum().backward()\n")
    assert made.w.grad.tolist() == [2.0, 2.0]
    assert provenance.limits == ["_note_backward failed: ValueError: 1 False"]


def test_warnings_point_to_the_same_line_as_without(write: Write) -> None:
    text = (
        "def run():\n"
        "    p = nn.Parameter(torch.ones(2))\n"
        "    torch.optim.SGD([p, p], lr=0.1)\n"
        "    torch.autograd.backward([p.sum()], grad_variables=[torch.ones(())])\n"
    )

    def places() -> list[tuple[str, int]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made.run()
        return [(Path(w.filename).name, w.lineno) for w in caught]

    made = write(text)
    without = places()
    with Provenance():
        assert places() == without
    assert without[-1] == ("train.py", 7)


@pytest.mark.usefixtures("provenance")
def test_a_compiled_training_step_does_not_notice(write: Write) -> None:
    made = write(
        "model = nn.Linear(2, 1)\n"
        "opt = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "@torch.compile(backend='eager')\n"
        "def step(x):\n"
        "    loss = model(x).square().mean()\n"
        "    loss.backward()\n"
        "    opt.step()\n"
        "    opt.zero_grad()\n"
        "    return loss.detach()\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = [made.step(torch.ones(3, 2)).item() for _ in range(3)]
    assert losses[2] < losses[0]


def test_installed_packages_count_as_the_users_code_only_when_they_are_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "trainer_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(2, 2)\n")
    monkeypatch.syspath_prepend(package.parent)
    import trainer_package  # type: ignore[import-not-found]

    with Provenance() as provenance, Provenance(own=[package]) as own:
        model = trainer_package.build()
        assert "trainer_package.build()" in line(provenance.creation(model.weight))
        assert line(own.creation(model.weight)) == "return nn.Linear(2, 2)"


def test_unpickled_modules_are_known_by_the_line_that_loads_them(
    provenance: Provenance, write: Write
) -> None:
    load = "model = torch.load(buffer, weights_only=False)"
    made = write(
        f"buffer = io.BytesIO()\ntorch.save(nn.Linear(2, 2).half(), buffer)\nbuffer.seek(0)\n{load}\n"
    )
    assert of(provenance.cast(made.model.weight))[1::2] == ("float16", load)


def test_deepcopy_of_a_bare_parameter_and_a_module_without_history() -> None:
    old = nn.Linear(2, 2)
    with Provenance() as provenance:
        twin = copy.deepcopy(old)
        copy.deepcopy(old.weight)
        assert "copy.deepcopy(old)" in line(provenance.creation(twin.weight))
    assert provenance.limits == []
