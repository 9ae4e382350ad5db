from __future__ import annotations

import pytest

from tests.remedies.running import Treated, in_a_folder_of_its_own, run

__all__ = ["in_a_folder_of_its_own"]

TIED = """
import torch
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16, bias=False))
model[2].weight = model[0].weight
{before}
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
{after}
data = torch.Generator().manual_seed(1)
for step in range(12):
    ids = torch.randint(16, (32,), generator=data)
    loss = nn.functional.cross_entropy(model(ids), (ids + 1) % 16)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert {check}
"""
BREAK = "model[2].weight = nn.Parameter(model[0].weight.detach().clone())"


def tied(
    *, before: str = "pass", after: str = "pass", check: str = "True", remedy: str | None = None
) -> Treated:
    return run(TIED.format(before=before, after=after, check=check), remedy, "0.weight", "2.weight")


@pytest.mark.parametrize("when", ["before", "after"])
def test_makes_one_parameter_of_two_that_were_one(when: str) -> None:
    breaking = (
        BREAK if when == "before" else f"{BREAK}; optimizer.add_param_group({{'params': [model[2].weight]}})"
    )
    check = "model[2].weight is model[0].weight and len(list(model.parameters())) == 3"
    check += " and sum(len(g['params']) for g in optimizer.param_groups) == 3"
    expected = tied().losses
    treated = tied(**{when: breaking}, check=check, remedy="re-tie")
    assert treated.intervention.acted
    assert treated.losses == pytest.approx(expected, rel=1e-6)
    assert tied(**{when: breaking}).losses != pytest.approx(expected, rel=1e-3)


def test_the_optimizer_steps_the_kept_one_where_it_had_the_other_alone() -> None:
    text = TIED.replace("model.parameters(), lr", "[*model[1].parameters(), model[2].weight], lr")
    check = "any(p is model[0].weight for p in optimizer.param_groups[0]['params'])"
    text = text.format(before=BREAK, after="pass", check=check)
    assert run(text, "re-tie", "0.weight", "2.weight").intervention.acted


def test_does_not_apply_to_a_tie_that_holds_or_to_other_shapes() -> None:
    treated = tied(remedy="re-tie")
    assert treated.losses == tied().losses
    assert not treated.intervention.acted
    other = run(TIED.format(before=BREAK, after="pass", check="True"), "re-tie", "0.weight", "1.weight")
    assert not other.intervention.acted
