"""Searching the source finds the lines that the run could not show, and says that they are not certain."""

from __future__ import annotations

from pathlib import Path

import pytest

from precdoctor.evidence import Place
from precdoctor.observe.provenance.source import Source


class Written:
    """A file of the user's, and the lines found in it."""

    def __init__(self, folder: Path, text: str) -> None:
        (folder / "train.py").write_text(text)
        self.source = Source(folder)
        self.lines = text.splitlines()

    def at(self, code: str) -> Place:
        return self.source.place("train.py", 1 + [line.strip() for line in self.lines].index(code))

    def cuts(self, code: str = "loss.backward()") -> list[str]:
        found = self.source.cuts_in(self.at(code))
        assert not any(place.certain for place in found)
        return [place.code for place in found]

    def casts(self, format: str = "") -> list[str]:
        return [place.code for place in self.source.likely_casts(["train.py"], format)]


def test_a_place_has_its_line_and_a_file_relative_to_the_root(tmp_path: Path) -> None:
    written = Written(tmp_path, "a = 1\n    b = 2\n")
    place = written.source.place(str(tmp_path / "train.py"), 2, "f")
    assert place == Place(file="train.py", line=2, function="f", code="b = 2", certain=True)
    assert written.source.place("gone.py", 1).code == ""


def test_excerpts_merge_where_they_touch(tmp_path: Path) -> None:
    written = Written(tmp_path, "\n".join(f"line {n}" for n in range(1, 101)))
    places = [Place(file="train.py", line=line) for line in (2, 9, 50, 50, 98, 400)]
    spans = [(file, low, len(lines)) for file, low, lines in written.source.excerpts(places, around=3)]
    assert spans == [("train.py", 1, 12), ("train.py", 47, 7), ("train.py", 95, 6)]
    assert written.source.excerpts([Place(file="gone.py", line=1)]) == ()


def test_follows_a_loss_rebuilt_from_numbers(tmp_path: Path) -> None:
    written = Written(
        tmp_path,
        """def train(actor, baseline):
    baseline = 0.9 * baseline + reward.mean().item()
    losses = []
    for lp, r in zip(*rollout(actor)):
        losses.append(-lp.item() * (r.item() - baseline))
    loss = torch.tensor(losses, requires_grad=True).mean()
    loss.backward()
""",
    )
    assert written.cuts() == [
        "loss = torch.tensor(losses, requires_grad=True).mean()",
        "losses.append(-lp.item() * (r.item() - baseline))",
    ]
    assert [place.function for place in written.source.cuts_in(written.at("loss.backward()"))] == [
        "train"
    ] * 2


@pytest.mark.parametrize(
    "cut",
    [
        "hidden = model(x).detach()",
        "hidden = model(x).data",
        "hidden = torch.from_numpy(model(x).detach().numpy())",
        "hidden = torch.as_tensor(model(x).tolist())",
        "hidden = torch.round(model(x))",
        "hidden = float(model(x))",
    ],
)
def test_follows_assignments_to_what_cuts(tmp_path: Path, cut: str) -> None:
    text = f"{cut}\nlogits = head(hidden)\nother = y.detach()\nloss, aux = criterion(logits, y), 0\n"
    assert Written(tmp_path, text + "loss.mean().backward()\n").cuts("loss.mean().backward()") == [cut]


def test_sees_a_forward_pass_without_gradients_and_functions_of_the_file(tmp_path: Path) -> None:
    text = """@torch.no_grad()
def encode(x):
    return model(x)
def objective(x):
    z = encode(x)
    return z.mean().round()
with torch.inference_mode():
    base = model(x)
loss = objective(x) + base
scaler.scale(loss).backward()
"""
    found = Written(tmp_path, text).cuts("scaler.scale(loss).backward()")
    assert set(found) == {"with torch.inference_mode():", "return z.mean().round()"}


def test_a_healthy_loss_has_no_cuts_and_other_calls_none_either(tmp_path: Path) -> None:
    written = Written(
        tmp_path, "n = float(len(x))\nloss = model(x).sum() / n\nloss.backward()\ntrainer.fit()\n"
    )
    assert written.cuts() == []
    assert written.cuts("trainer.fit()") == []
    assert written.source.cuts_in(Place(file="gone.py", line=1)) == ()


@pytest.mark.parametrize(
    ("text", "cast", "constant"),
    [
        ("DTYPE = torch.bfloat16\nmodel.to(DTYPE)\n", "model.to(DTYPE)", "DTYPE = torch.bfloat16"),
        (
            "D: torch.dtype = torch.half\nmodel.to(dtype=D)\n",
            "model.to(dtype=D)",
            "D: torch.dtype = torch.half",
        ),
        ("def f(m, d=torch.half):\n    m.to(d)\n", "m.to(d)", "def f(m, d=torch.half):"),
        ("d = torch.float32\ndef f(m):\n    d = torch.half\n    m.to(d)\n", "m.to(d)", "d = torch.half"),
        (
            "d = torch.half if gpu else torch.float32\nm.to(d)\n",
            "m.to(d)",
            "d = torch.half if gpu else torch.float32",
        ),
        ("d = 'cpu'\nm.to(d)\n", "m.to(d)", None),
        ("m.to(torch.half)\n", "m.to(torch.half)", None),
    ],
)
def test_finds_the_constant_behind_a_cast(tmp_path: Path, text: str, cast: str, constant: str | None) -> None:
    written = Written(tmp_path, text)
    found = written.source.dtype_constant(written.at(cast))
    assert (found and found.code) == constant
    assert found is None or not found.certain


@pytest.mark.parametrize(
    "cast",
    [
        "model = TinyLM().to(torch.bfloat16)",
        "net.bfloat16()",
        "self.net = net.to(device, dtype=torch.bfloat16)",
        "torch.set_default_dtype(torch.bfloat16)",
        "m = AutoModel.from_pretrained(name, torch_dtype='bfloat16')",
        "layer = nn.Linear(2, 2, dtype=torch.bfloat16)",
        "model.load_state_dict(state, assign=True)",
        "m = AutoModel.from_pretrained(name)",
    ],
)
def test_likely_casts_are_those_of_models(tmp_path: Path, cast: str) -> None:
    text = f"with torch.autocast('cpu', dtype=torch.bfloat16):\n    y = x.to(torch.bfloat16)\n{cast}\n"
    written = Written(tmp_path, text)
    assert written.casts("bfloat16") == [cast]


def test_casts_of_tensors_are_likely_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    written = Written(tmp_path, "w = torch.zeros(3, dtype=torch.float16)\nv = w.bfloat16()\n")
    assert written.casts("float16") == ["w = torch.zeros(3, dtype=torch.float16)"]
    assert len(written.casts()) == 2
    assert written.casts("e5m2") == []


def test_what_is_not_python_yields_nothing(tmp_path: Path) -> None:
    written = Written(tmp_path, "model.half( ]\n")
    assert written.casts() == []
    assert written.source.data_assignments(["train.py", "gone.py"]) == ()
    assert written.source.dtype_constant(written.at("model.half( ]")) is None
