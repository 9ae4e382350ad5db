from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple

import torch

from precdoctor.remedies.autocast import widened
from tests.remedies.running import CAST, harms_no_healthy_one, in_a_folder_of_its_own, net, run

__all__ = ["in_a_folder_of_its_own"]


def test_thaws_the_norm_of_a_cast_model() -> None:
    assert "norm.weight" in run(net()).ill()
    treated = run(net(), "autocast")
    assert treated.ill() == set()
    assert treated.formats == {"float32"}
    assert treated.intervention.acted


def test_harms_no_float32_program() -> None:
    harms_no_healthy_one("autocast")


def test_computes_in_the_format_that_the_program_wanted() -> None:
    text = net(
        cast=CAST + "\nmodel.outer.register_forward_hook(lambda m, i, o: seen.append(o.dtype))\nseen = []"
    )
    text += "assert set(seen) == {torch.bfloat16}, seen\nassert out.dtype == torch.float32\n"
    run(text, "autocast")


def test_widens_layers_that_are_made_in_the_low_format() -> None:
    text = net(cast="").replace("nn.Linear(8, 32)", "nn.Linear(8, 32, dtype=torch.bfloat16)")
    text = text.replace("torch.ones(size)", "torch.ones(size, dtype=torch.bfloat16)")
    text = text.replace("nn.Linear(32, 1)", "nn.Linear(32, 1, dtype=torch.bfloat16)")
    assert run(text, "autocast").formats == {"float32"}


def test_scales_the_loss_of_a_float16_program() -> None:
    text = net(cast="model.half()\nnn.Module.train(model)")
    text = text.replace("loss.backward()", "(loss * 1e-6).backward()")
    gradient = run(text, "autocast").named("inner.weight").gradient
    binades = gradient.binades
    assert binades is not None
    assert binades.zeros < 0.5 * (binades.zeros + binades.exponents.total)


def test_runs_a_model_whose_methods_are_called_instead_of_itself() -> None:
    text = net().replace(
        "def forward(self, x):\n        return self.outer", "def predict(self, x):\n        return self.outer"
    )
    text = text.replace("model(x.to", "model.predict(x.to")
    assert run(text, "autocast").ill() == set()


def test_does_not_apply_to_a_program_without_a_model() -> None:
    text = (
        "import torch\nw = torch.ones(8, dtype=torch.float32, requires_grad=True)\n"
        "optimizer = torch.optim.SGD([w], lr=0.1)\nw.sum().backward()\noptimizer.step()\n"
    )
    treated = run(text, "autocast")
    assert not treated.intervention.acted
    assert treated.intervention.otherwise == "no model in it has weights below float32"


def test_widens_outputs_in_containers_and_leaves_everything_else() -> None:
    low, ids = torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64)
    pair = namedtuple("pair", "first second")

    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor
        cache: object

    cache = object()
    found = widened([{"a": low}, (low, ids), pair(low, 1), OrderedDict(b=low), Output(low, cache), None, "x"])
    assert found[0]["a"].dtype == found[1][0].dtype == found[2].first.dtype == torch.float32
    assert found[1][1] is ids
    assert type(found[3]) is OrderedDict
    assert found[3]["b"].dtype == found[4].logits.dtype == torch.float32
    assert found[4].cache is cache
    assert found[5:] == [None, "x"]
