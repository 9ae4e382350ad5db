"""Float32 masters behind low-format weights."""

from __future__ import annotations

import torch

from precdoctor.remedies import MasterWeights
from tests.remedies.wrappers.build import adamw, net, train, weight

LR = 2.0**-10


def test_the_weight_is_the_rounded_master() -> None:
    model = net()
    optimizer = MasterWeights(adamw(model.parameters()))
    train(model, optimizer, 20)
    kept = optimizer.state_dict()["precdoctor"]["kept"]
    for index, p in enumerate(model.parameters()):
        assert kept[index].dtype == torch.float32
        assert torch.equal(kept[index].bfloat16(), p)
        assert not torch.equal(kept[index], p.float())


def test_what_others_write_to_a_weight_goes_into_the_master() -> None:
    p = weight(1.0, 3)
    optimizer = MasterWeights(torch.optim.SGD([p], lr=LR))
    p.grad = torch.ones_like(p)
    optimizer.step()
    p.data[1] = 0.5
    optimizer.step()
    assert optimizer.state_dict()["precdoctor"]["kept"][0].tolist() == [1 - 2 * LR, 0.5 - LR, 1 - 2 * LR]


def test_an_optimizer_that_assigns_data_is_followed() -> None:
    class Assigns(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p.data = p.data - group["lr"] * p.grad

    p = weight()
    optimizer = MasterWeights(Assigns([p], lr=LR))
    storage = p.data_ptr()
    p.grad = torch.ones_like(p)
    for _ in range(8):
        optimizer.step()
    assert p.eq(1 - 8 * LR).all()
    assert p.data_ptr() == storage
