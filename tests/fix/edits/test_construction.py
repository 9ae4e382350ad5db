"""The optimizer's construction: wrapped, its lr multiplied, its settings set."""

from __future__ import annotations

from pathlib import Path

import pytest

from precdoctor.evidence import Group, Optimizer
from precdoctor.fix.sources import NoSafeEdit
from tests.fix.build import edited, optimizer, parameter, place, save, text, treatment


def changed(
    source: str, remedy: str, *, groups: int = 1, ill: tuple[int, ...] = (0,), **settings: float
) -> str:
    save(source)
    fragment = next(line for line in Path("train.py").read_text().splitlines() if "AdamW(" in line)
    parameters = tuple(parameter(f"w{number}", group=number) for number in range(groups))
    return edited(
        treatment(
            remedy,
            parameters,
            settings=dict(settings),
            ill=tuple(f"w{number}" for number in ill),
            optimizers=(optimizer(fragment.strip(), groups),),
        )
    )


@pytest.mark.parametrize(
    ("remedy", "name"),
    [
        ("master-weights", "MasterWeights"),
        ("stochastic-rounding", "StochasticRounding"),
        ("kahan", "KahanSummation"),
        ("float32-state", "Float32State"),
    ],
)
def test_wraps_the_optimizer(remedy: str, name: str) -> None:
    source = "import torch\n\nopt = torch.optim.AdamW(w, lr=1e-3)  # lean\n"
    assert changed(source, remedy) == (
        f"import torch\nfrom precdoctor.remedies import {name}\n\n"
        f"opt = {name}(torch.optim.AdamW(w, lr=1e-3))  # lean\n"
    )


def test_wraps_an_optimizer_over_several_lines_in_a_function() -> None:
    source = '''
        """Build."""
        from __future__ import annotations
        from torch.optim import AdamW


        def build(model):
            return {
                "optimizer": AdamW(
                    model.parameters(),  # all of them
                    lr=1e-3,
                ),
            }
        '''
    assert changed(source, "kahan") == text('''
        """Build."""
        from __future__ import annotations
        from torch.optim import AdamW
        from precdoctor.remedies import KahanSummation


        def build(model):
            return {
                "optimizer": KahanSummation(AdamW(
                    model.parameters(),  # all of them
                    lr=1e-3,
                )),
            }
        ''')


def test_wraps_an_optimizer_made_under_another_name() -> None:
    save("opt = KINDS[args.kind](net.parameters(), lr=1e-3)\n")
    asked = treatment("kahan", (parameter(),), optimizers=(optimizer("KINDS"),))
    assert edited(asked) == (
        "from precdoctor.remedies import KahanSummation\n\n"
        "opt = KahanSummation(KINDS[args.kind](net.parameters(), lr=1e-3))\n"
    )


def test_wraps_only_the_optimizer_of_the_ill_parameters() -> None:
    save("a = Muon(x)\nb = AdamW(y)\n")
    parameters = (parameter("x", optimizer=0), parameter("y", optimizer=1))
    optimizers = (optimizer("a = Muon", type="mine.Muon"), optimizer("b = AdamW"))
    found = edited(treatment("kahan", parameters, ill=("y",), optimizers=optimizers))
    assert "a = Muon(x)\nb = KahanSummation(AdamW(y))\n" in found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("w, lr=1e-3", "w, lr=1e-3 * 10"),
        ("w, lr = lr*0.3, eps=1", "w, lr = lr*0.3 * 10, eps=1"),
        ("w, lr=base + 1", "w, lr=(base + 1) * 10"),
        ("w, lr=a if b else c", "w, lr=(a if b else c) * 10"),
        ("w, args.lr", "w, args.lr * 10"),
        ("w, lr=config['lr']", "w, lr=config['lr'] * 10"),
        ("[{'params': w, 'lr': 2 * lr}]", "[{'params': w, 'lr': 2 * lr * 10}]"),
    ],
)
def test_multiplies_the_learning_rate(arguments: str, expected: str) -> None:
    found = changed(f"opt = torch.optim.AdamW({arguments})\n", "group-lr", factor=10.0)
    assert found == f"opt = torch.optim.AdamW({expected})\n"


def test_multiplies_the_learning_rate_of_the_right_group() -> None:
    source = """
        opt = torch.optim.AdamW(
            [
                {"params": matrices, "lr": lr},  # large
                {"params": norms},  # small
            ],
            lr=base,
        )
        """
    assert changed(source, "group-lr", groups=2, ill=(1,), factor=3.0) == text("""
        opt = torch.optim.AdamW(
            [
                {"params": matrices, "lr": lr},  # large
                {"params": norms, "lr": base * 3},  # small
            ],
            lr=base,
        )
        """)


def test_multiplies_the_learning_rate_of_a_group_added_later() -> None:
    save("opt = AdamW(a, lr=1)\nopt.add_param_group({'params': b, 'lr': 2})\n")
    groups = (Group(place=place("train.py", "AdamW")), Group(place=place("train.py", "add_param_group")))
    optimizers = (Optimizer(type="torch.optim.adamw.AdamW", place=place("train.py", "AdamW"), groups=groups),)
    parameters = (parameter("a", group=0), parameter("b", group=1))
    asked = treatment("group-lr", parameters, ill=("b",), settings={"factor": 5.0}, optimizers=optimizers)
    assert edited(asked) == "opt = AdamW(a, lr=1)\nopt.add_param_group({'params': b, 'lr': 2 * 5})\n"


def test_does_not_touch_a_learning_rate_that_healthy_parameters_share() -> None:
    save("opt = AdamW(w, lr=1)\n")
    asked = treatment(
        "group-lr",
        (parameter("a"), parameter("b")),
        ill=("a",),
        settings={"factor": 5.0},
        optimizers=(optimizer("AdamW"),),
    )
    with pytest.raises(NoSafeEdit, match=r"group of their own with 5 times the lr at train\.py:1: 1 others"):
        edited(asked)


def test_leaves_groups_built_elsewhere_to_the_user() -> None:
    with pytest.raises(NoSafeEdit, match=r"multiply the lr at train\.py:1 by 5 by hand"):
        changed("opt = AdamW(groups, lr=1)\n", "group-lr", groups=2, ill=(1,), factor=5.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("w, lr=1e-3, eps=1e-8, fused=True", "w, lr=1e-3, eps=0.0001, fused=True"),
        ("w, lr=1e-3", "w, lr=1e-3, eps=0.0001"),
        ("w, lr=1e-3,", "w, lr=1e-3, eps=0.0001,"),
        ("w, 1e-3, (0.9, 0.99)", "w, 1e-3, (0.9, 0.99), eps=0.0001"),
    ],
)
def test_sets_eps(arguments: str, expected: str) -> None:
    assert changed(f"opt = AdamW({arguments})\n", "eps", eps=1e-4) == f"opt = AdamW({expected})\n"


@pytest.mark.parametrize("comma", [",", ""])
def test_adds_a_setting_in_the_layout_of_the_others(comma: str) -> None:
    source = f"opt = AdamW(\n    w,\n    lr=1e-3{comma}  # tuned\n)\n"
    assert changed(source, "eps", eps=1e-4) == (
        f"opt = AdamW(\n    w,\n    lr=1e-3,  # tuned\n    eps=0.0001{comma}\n)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("w, betas=(0.8, 0.999)", "w, betas=(0.8, 0.99)"),
        ("w, betas=[b1, b2], lr=1", "w, betas=[b1, 0.99], lr=1"),
        ("w, betas=args.betas", "w, betas=(args.betas[0], 0.99)"),
        ("w", "w, betas=(0.9, 0.99)"),
    ],
)
def test_sets_beta2(arguments: str, expected: str) -> None:
    assert changed(f"opt = AdamW({arguments})\n", "beta2", beta2=0.99) == f"opt = AdamW({expected})\n"


def test_turns_the_fused_implementation_off() -> None:
    found = changed("opt = torch.optim.AdamW(w, fused=True)\n", "plain-optimizer")
    assert found == "opt = torch.optim.AdamW(w, fused=False, foreach=False)\n"


@pytest.mark.parametrize("arguments", ["*args", "w, 1, (0.9, 0.99), 1e-8", "[{'params': w, 'eps': 1e-8}]"])
def test_names_the_line_where_eps_may_be_set_otherwise(arguments: str) -> None:
    with pytest.raises(NoSafeEdit, match=r"set eps .*train\.py:1"):
        changed(f"opt = AdamW({arguments})\n", "eps", eps=1e-4)


def test_says_so_where_no_dose_is_known() -> None:
    with pytest.raises(NoSafeEdit, match="no eps is known"):
        changed("opt = AdamW(w)\n", "eps")
