"""A local model folder and a text: no network, no code of the folder, and clear without transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from precdoctor.evaluation import EvaluationError, load_folder, rows, sample_losses


def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "text.txt").write_text("some text " * 50, encoding="utf-8")
    return tmp_path / "model"


def test_says_that_transformers_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EvaluationError, match="needs the package transformers: pip install transformers"):
        load_folder(folder(tmp_path), tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda model, text: text.unlink(), r"text.txt: No such file"),
        (lambda model, text: text.write_bytes(b"\xff\xfe\x00"), r"text.txt: not a text in UTF-8"),
        (lambda model, text: text.write_text(" \n"), r"text.txt: is empty"),
        (lambda model, text: (model / "config.json").unlink(), r"no config.json in it"),
        (lambda model, text: (model / "config.json").write_text("{"), r"config.json: can't be read as JSON"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path: Path, make: object, told: str) -> None:
    model = folder(tmp_path)
    make(model, tmp_path / "text.txt")  # type: ignore[operator]
    with pytest.raises(EvaluationError, match=told):
        load_folder(model, tmp_path / "text.txt")


def test_no_such_folder(tmp_path: Path) -> None:
    folder(tmp_path)
    with pytest.raises(EvaluationError, match="no such folder"):
        load_folder(tmp_path / "nowhere", tmp_path / "text.txt")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return the folder of a tiny Llama with a tokenizer of characters, saved by transformers."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    model = folder(tmp_path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(model)
    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz? ")}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(model)
    return model


@pytest.mark.filterwarnings("ignore")  # other people's packages
def test_a_saved_model_gives_windows_and_the_loss_of_its_next_tokens(saved: Path, tmp_path: Path) -> None:
    found = load_folder(saved, tmp_path / "text.txt", window=20)
    batch = next(rows(found.batches, 1, "t", torch.device("cpu")))
    assert batch[0].shape == (1, 19)
    assert torch.equal(batch[0][0, 1:], batch[1][0, :-1]), "the target is the token after"
    with torch.no_grad():
        output = found.model(batch[0])
        loss = sample_losses(found.loss, output, batch, name="t", again=lambda one: None)
        whole = torch.cat([batch[0], batch[1][:, -1:]], 1)
        expected = found.model(whole, labels=whole).loss.item()  # transformers' own
    assert loss[0] == pytest.approx(expected, rel=2e-2)
    assert {p.dtype for p in found.model.parameters()} == {torch.bfloat16}, "as it is stored"


@pytest.mark.filterwarnings("ignore")
def test_code_in_the_folder_is_never_run(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["model_type"] = "unheard_of"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(EvaluationError, match="transformers can't load it"):
        load_folder(saved, tmp_path / "text.txt")
    assert not (tmp_path / "ran").exists()
