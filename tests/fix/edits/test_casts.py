"""A cast goes from the line that makes it, whatever its form, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from precdoctor.fix.edits.casts import remove_cast
from precdoctor.fix.sources import NoSafeEdit, Sources
from tests.fix.build import parameter, save, text


def without_cast(source: str, fragment: str, how: str, constant: str = "") -> str:
    save(source)
    cast = parameter(cast=fragment, how=how, constant=constant).cast
    assert cast is not None
    assert cast.place is not None
    sources = Sources(Path.cwd())
    remove_cast(sources, cast, cast.place)
    (change,) = sources.changes().values()
    return change[1].decode()


@pytest.mark.parametrize(
    ("line", "how", "expected"),
    [
        ("net = Net().to(dtype=torch.bfloat16)", "module.to", "net = Net()"),
        ("net = Net().to(dev).to(torch.bfloat16)", "module.to", "net = Net().to(dev)"),
        ("net = Net().to(torch.bfloat16).to(dev)", "module.to", "net = Net().to(dev)"),
        ("net = Net().bfloat16()  # lean", "module.bfloat16", "net = Net()  # lean"),
        ("net = Net(8, bias = False).half( )", "module.half", "net = Net(8, bias = False)"),
        ("net = net.to(dev, torch.bfloat16)", "module.to", "net = net.to(dev)"),
        ("net = net.to( dev , dtype = torch.bfloat16 )", "module.to", "net = net.to( dev )"),
        ("net = net.to(dtype=torch.bfloat16, device=dev)", "module.to", "net = net.to(device=dev)"),
        ("net = net.to(dev, DTYPE, non_blocking=True)", "module.to", "net = net.to(dev, non_blocking=True)"),
        ("net = net.type(torch.bfloat16).cuda()", "module.type", "net = net.cuda()"),
        ("net = wrap(net.to(args.dtype), depth=2)", "module.to", "net = wrap(net, depth=2)"),
        ("net = Net(dtype=d).to(torch.bfloat16)", "module.to", "net = Net(dtype=d)"),
        ("a, b = A().bfloat16(), B().bfloat16()", "module.bfloat16", "a, b = A(), B()"),
        ("return net.to(torch.bfloat16)", "module.to", "return net"),
        ("fc = nn.Linear(4, 4, dtype=torch.bfloat16)", "created", "fc = nn.Linear(4, 4)"),
        ("fc = nn.Linear(4, 4, dtype=dtype, bias=False)", "created", "fc = nn.Linear(4, 4, bias=False)"),
        ("w = nn.Parameter(torch.ones(4, dtype=DTYPE))", "created", "w = nn.Parameter(torch.ones(4))"),
        ("w = nn.Parameter(torch.ones(4).bfloat16())", "created", "w = nn.Parameter(torch.ones(4))"),
        (
            "net = Auto.from_pretrained(name, torch_dtype='auto')",
            "from_pretrained",
            "net = Auto.from_pretrained(name, torch_dtype=torch.float32)",
        ),
    ],
)
def test_takes_the_cast_out_of_an_expression(line: str, how: str, expected: str) -> None:
    source = "import torch\ndef build(net, dev, dtype):\n    # first\n    {}\n    last()\n"
    assert without_cast(source.format(line), line, how) == source.format(expected)


@pytest.mark.parametrize(
    ("line", "how"),
    [
        ("net = net.to(torch.bfloat16)", "module.to"),
        ("net.to(dtype=torch.bfloat16)", "module.to"),
        ("self.net = self.net.bfloat16()", "module.bfloat16"),
        ("net.half()", "module.half"),
        ("p.data = p.data.to(torch.bfloat16)", "data assignment"),
        ("torch.set_default_dtype(torch.bfloat16)", "default dtype"),
    ],
)
def test_removes_a_statement_that_only_cast(line: str, how: str) -> None:
    source = f"import torch\nif True:\n    first()\n    {line}  # smaller\n    last()\n"
    assert without_cast(source, line, how) == "import torch\nif True:\n    first()\n    last()\n"


def test_leaves_pass_where_a_block_would_be_empty_and_the_comment_above() -> None:
    source = """
        if lean:
            # weights in two bytes
            net = net.bfloat16()
        else:
            net = net.float()
        """
    assert without_cast(source, "net.bfloat16", "module.bfloat16") == text("""
        if lean:
            # weights in two bytes
            pass
        else:
            net = net.float()
        """)


def test_leaves_pass_in_a_block_on_one_line() -> None:
    source = "if lean: net.bfloat16()\nrun()\n"
    assert without_cast(source, "net.bfloat16", "module.bfloat16") == "if lean: pass\nrun()\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("net = Net(); net.bfloat16()", "net = Net()"),
        ("net.bfloat16(); run(net)", "run(net)"),
        ("net = Net(); net.bfloat16(); run(net)", "net = Net(); run(net)"),
    ],
)
def test_removes_one_of_several_statements_on_a_line(line: str, expected: str) -> None:
    assert without_cast(f"{line}\n", line, "module.bfloat16") == f"{expected}\n"


def test_keeps_comments_above_a_removed_statement() -> None:
    source = """
        net = Net()

        # two bytes are enough
        net = net.bfloat16()
        run(net)
        """
    assert without_cast(source, "net.bfloat16", "module.bfloat16") == text("""
        net = Net()

        # two bytes are enough
        run(net)
        """)


def test_keeps_comments_above_a_statement_removed_from_the_end() -> None:
    source = "def build(net):\n    run(net)\n    # lean\n    net.bfloat16()\n"
    assert without_cast(source, "net.bfloat16", "module.bfloat16") == (
        "def build(net):\n    run(net)\n    # lean\n"
    )


def test_takes_the_cast_out_of_a_chain_over_several_lines() -> None:
    source = """
        net = (
            Net(  8)  # the net
            .to(dev)  # there
            .to(torch.bfloat16)
            .train()
        )
        """
    assert without_cast(source, ".to(torch.bfloat16)", "module.to") == text("""
        net = (
            Net(  8)  # the net
            .to(dev)  # there
            .train()
        )
        """)


def test_keeps_a_comment_before_a_cast_that_ends_a_chain() -> None:
    source = """
        net = (
            Net()  # the net
            .bfloat16()
        )
        """
    assert without_cast(source, ".bfloat16()", "module.bfloat16") == text("""
        net = (
            Net()  # the net
        )
        """)


def test_removes_an_argument_that_has_a_line_of_its_own() -> None:
    source = """
        fc = nn.Linear(
            4,
            8,  # units
            dtype=torch.bfloat16,
        )
        """
    assert without_cast(source, "fc = nn.Linear(", "created") == text("""
        fc = nn.Linear(
            4,
            8,  # units
        )
        """)


def test_edits_the_line_rather_than_the_constant() -> None:
    source = "DTYPE = torch.bfloat16\nnet = Net().to(DTYPE)\nx = x.to(DTYPE)\n"
    assert without_cast(source, "net =", "module.to", "DTYPE =") == (
        "DTYPE = torch.bfloat16\nnet = Net()\nx = x.to(DTYPE)\n"
    )


def test_edits_the_constant_where_the_line_has_no_cast_to_take_out() -> None:
    source = "DTYPE = torch.bfloat16\nnet = Net(4, DTYPE)\n"
    assert (
        without_cast(source, "net =", "created", "DTYPE =") == "DTYPE = torch.float32\nnet = Net(4, DTYPE)\n"
    )


@pytest.mark.parametrize("line", ["net.load_state_dict(state, assign=True)", "net = build(config)"])
def test_names_the_line_where_no_cast_is_written(line: str) -> None:
    with pytest.raises(NoSafeEdit, match=r"take the cast to bfloat16 out of train\.py:1: net"):
        without_cast(f"{line}\n", line, "load_state_dict")
