"""Other tensors are found a place wherever an optimizer keeps its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from precdoctor.remedies.wrappers.exchange import exchange, family, parameters


class Collector(torch.optim.SGD):
    """Keeps its parameters in every way seen in the wild."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        first = self.param_groups[0]["params"][0]
        self.listed, self.kinds, self.marked = [first], {"muon": [first]}, {id(first), 7}
        self.named = {first: "first"}
        self.inside = [torch.optim.SGD([first], lr=0.1)]


def test_replaces_and_puts_back_every_mention() -> None:
    p, q, other = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = Collector([p, q])
    group = optimizer.param_groups[0]["params"]
    optimizer.state[p]["m"], optimizer.state[q]["m"] = 1, 2
    members = family(optimizer)
    assert members == [optimizer, *optimizer.inside]
    assert list(parameters(members)) == [p, q]
    for old, new in ((p, other), (other, p)):
        exchange(members, {id(old): new})
        assert optimizer.param_groups[0]["params"] is group
        assert [id(x) for x in group] == [id(new), id(q)]
        assert [id(x) for x in optimizer.state] == [id(new), id(q)]
        assert optimizer.listed[0] is optimizer.kinds["muon"][0] is new
        assert optimizer.marked == {id(new), 7}
        assert next(iter(optimizer.named)) is new
        assert optimizer.inside[0].param_groups[0]["params"][0] is new


def test_lbfgs_keeps_its_own_list() -> None:
    p, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.LBFGS([p])
    exchange([optimizer], {id(p): other})
    assert optimizer._params[0] is other
