"""The statements that call the model run under autocast, and the losses computed from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from precdoctor.evidence import Forward
from precdoctor.fix.candidates import write
from precdoctor.fix.sources import NoSafeEdit
from tests.fix.build import edited, forward, parameter, save, text, treatment


def autocast(source: str, *calls: str, cast: str = "net.bfloat16()", expression: str = "net") -> str:
    save(source)
    parameters = (parameter(cast=cast, how="module.bfloat16"),)
    return edited(treatment("autocast", parameters, forwards=tuple(forward(c, expression) for c in calls)))


def test_wraps_the_call_and_the_loss_up_to_backward() -> None:
    source = """
        import torch
        net.bfloat16()
        for x, y in data:
            # forward
            out = net(x)  # logits
            loss = loss_of(out, y)
            opt.zero_grad()
            loss.backward()
        """
    assert autocast(source, "out = net(x)") == text("""
        import torch
        for x, y in data:
            # forward
            with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
                out = net(x)  # logits
                loss = loss_of(out, y)
            opt.zero_grad()
            loss.backward()
        """)


def test_wraps_the_same_call_elsewhere_but_not_inside_autocast() -> None:
    source = """
        import torch
        class Trainer:
            def fit(self, x):
                return self.net(x).sum()

            def test(self, x):
                out = self.net( x )
                with torch.no_grad(), torch.autocast("cpu"):
                    more = self.net(x)
                return out, more

        net.bfloat16()
        """
    assert autocast(source, "return self.net(x)", expression="self.net") == text("""
        import torch
        class Trainer:
            def fit(self, x):
                with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
                    return self.net(x).sum()

            def test(self, x):
                with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
                    out = self.net( x )
                with torch.no_grad(), torch.autocast("cpu"):
                    more = self.net(x)
                return out, more
        """)


def test_wraps_inside_a_region_that_was_seen_to_be_inactive_and_its_like() -> None:
    source = """
        import torch
        net.bfloat16()
        def fit(x):
            with amp():
                with autocast_of(args):
                    loss = net(x)
        def test(x):
            with autocast_of(args):
                print(net(x))
        """
    found = autocast(source, "loss = net(x)")
    assert found.count('with torch.autocast(device_type="cpu", dtype=torch.bfloat16):') == 2


def test_puts_neighbouring_calls_into_one_region() -> None:
    source = "import torch\nnet.bfloat16()\na = net(x)\nb = net(y)\nc = a - b\n"
    assert autocast(source, "a = net(x)", "b = net(y)") == (
        'import torch\nwith torch.autocast(device_type="cpu", dtype=torch.bfloat16):\n'
        "    a = net(x)\n    b = net(y)\nc = a - b\n"
    )


def test_keeps_the_layout_of_a_call_over_several_lines() -> None:
    source = """
        import torch
        net.bfloat16()
        def step(x):
          loss = net(
            x,   # inputs
            y=[1,
               2],
          )
          return loss
        """
    assert autocast(source, "loss = net(") == text("""
        import torch
        def step(x):
          with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
            loss = net(
              x,   # inputs
              y=[1,
                 2],
            )
          return loss
        """)


def test_leaves_calls_that_run_under_autocast_already() -> None:
    save("net.bfloat16()\nwith amp():\n    net(x)\n")
    parameters = (parameter(cast="net.bfloat16()", how="module.bfloat16"),)
    forwards = (forward("net(x)", "net", autocast="bfloat16"),)
    assert edited(treatment("autocast", parameters, forwards=forwards)) == "with amp():\n    net(x)\n"


def test_imports_torch_where_the_file_does_not() -> None:
    save("import torch\nimport loop\nloop.run(Net().bfloat16())\n")
    save('"""The loop."""\n\n\ndef run(net):\n    return net(1)\n', "loop.py")
    parameters = (parameter(cast="Net().bfloat16()", how="module.bfloat16"),)
    asked = treatment("autocast", parameters, forwards=(forward("net(1)", "net", "loop.py"),))
    changes = write(asked, Path.cwd()).changes
    assert changes[Path("train.py").resolve()][1] == b"import torch\nimport loop\nloop.run(Net())\n"
    assert changes[Path("loop.py").resolve()][1].decode() == text('''
        """The loop."""

        import torch


        def run(net):
            with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
                return net(1)
        ''')


def test_says_that_the_cast_depended_on_a_condition() -> None:
    save("import torch\nif lean:\n    net.bfloat16()\nnet(x)\n")
    parameters = (parameter(cast="net.bfloat16()", how="module.bfloat16"),)
    found = write(treatment("autocast", parameters, forwards=(forward("net(x)", "net"),)), Path.cwd())
    assert found.notes == ("the cast at train.py:3 depended on a condition; autocast now does not",)


@pytest.mark.parametrize(
    "line",
    [
        "if net(x).sum() > 0: stop()",
        "while net(x): pass",
        "for y in net(x): print(y)",
        "score = lambda x: net(x)",
        "with open(net(x)): pass",
        "def f(x=net(x)): pass",
    ],
)
def test_names_the_line_where_a_region_does_not_fit(line: str) -> None:
    with pytest.raises(NoSafeEdit, match=r"run the model's call at train\.py:3 under torch\.autocast"):
        autocast(f"import torch\nnet.bfloat16()\n{line}\n", line)


def test_does_not_wrap_what_yields() -> None:
    with pytest.raises(NoSafeEdit, match=r"train\.py:4"):
        autocast("import torch\nnet.bfloat16()\ndef f(x):\n    yield net(x)\n", "yield net(x)")


def test_leaves_it_to_the_user_where_no_call_was_seen() -> None:
    with pytest.raises(NoSafeEdit, match="no line of yours was seen to call the model"):
        autocast("net.bfloat16()\n")


def test_leaves_float16_to_the_user_since_it_needs_a_scaler() -> None:
    save("net.half()\nnet(x)\n")
    parameters = (parameter(cast="net.half()", how="module.half", format="float16"),)
    forwards: tuple[Forward, ...] = (forward("net(x)", "net"),)
    with pytest.raises(NoSafeEdit, match=r"GradScaler .*\(cast at train\.py:1\)"):
        edited(treatment("autocast", parameters, forwards=forwards))
