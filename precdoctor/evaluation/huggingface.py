"""A Hugging Face model from a local folder, and a text as its data: no network, no code of the folder's."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from precdoctor.evaluation.evaluation import Evaluation, EvaluationError, first_line

#: tokens of a sample at most
WINDOW = 256
#: share of the tokens that are hidden from a masked language model (Devlin et al. 2019, section 3.1)
MASKED = 0.15
#: what a loss function of torch leaves out
_IGNORED = -100
#: set while transformers is imported and used: no network, and no pickle that could run code
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
}


def load_folder(folder: Path, text: Path, *, window: int = WINDOW) -> Evaluation:
    """Return a causal or masked language model from a folder (or GGUF file), with windows of a text.

    Raises `EvaluationError` where transformers, the folder or the text is not what it should be.
    """
    words = _read(text)
    path, extra = _source(folder)
    with _offline():
        transformers = _transformers()
        options = {"local_files_only": True, "trust_remote_code": False, **extra}
        try:
            config = transformers.AutoConfig.from_pretrained(path, **options)
            kind = _kind(config, folder)
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
            head = getattr(transformers, f"AutoModelFor{kind}")
            model = head.from_pretrained(path, config=config, **options, **_dtype(transformers))
        except EvaluationError:
            raise
        except Exception as error:  # whatever a library says of a folder that is not a model
            raise EvaluationError(
                f"{folder}: transformers can't load it: {type(error).__name__}: {first_line(error)}"
            ) from None
        tokens = _tokens(tokenizer, words)
    model.config.use_cache = False  # nothing is generated
    longest = getattr(config, "max_position_embeddings", None) or window
    size = min(window, longest, len(tokens))
    if size < 2:
        raise EvaluationError(f"{text}: holds {len(tokens)} tokens; give a text of at least 2")
    windows = [tokens[start : start + size] for start in range(0, len(tokens) - size + 1, size)]
    batches: Any
    if kind == "CausalLM":
        batches = _Causal(windows)
    else:
        if tokenizer.mask_token_id is None:
            raise EvaluationError(f"{folder}: its tokenizer has no mask token")
        batches = _Masked(windows, tokenizer.mask_token_id)
    how = "each next token" if kind == "CausalLM" else f"{MASKED:.0%} of the tokens, hidden"
    return Evaluation.of(
        model,
        batches,
        _loss,
        name=str(folder),
        notes=(f"{len(windows)} windows of {size} tokens of {text.name}; the loss is that of {how}",),
    )


class _Causal:
    """Windows as batches of one: (tokens, the tokens after them)."""

    def __init__(self, windows: list[Tensor]) -> None:
        self.windows = windows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for window in self.windows:
            yield window[None, :-1], window[None, 1:]


class _Masked:
    """Windows as batches of one: (tokens, some of them hidden; the hidden ones)."""

    def __init__(self, windows: list[Tensor], mask: int) -> None:
        self.windows, self.mask = windows, mask

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        chance = torch.Generator().manual_seed(0)
        for window in self.windows:
            hidden = torch.rand(len(window), generator=chance) < MASKED
            hidden[0] |= not hidden.any()  # a window without a question has no loss
            yield (
                window.masked_fill(hidden, self.mask)[None],
                window.masked_fill(~hidden, _IGNORED)[None],
            )


def _loss(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(output.logits.flatten(0, 1), target.flatten(), ignore_index=_IGNORED)


def _read(text: Path) -> str:
    try:
        words = text.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise EvaluationError(f"{text}: not a text in UTF-8") from None
    except OSError as error:
        raise EvaluationError(f"{text}: {error.strerror}") from None
    if not words.strip():
        raise EvaluationError(f"{text}: is empty; give a text to evaluate on")
    return words


def _source(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the folder to load from, and the name of the GGUF file in it, if one holds the model."""
    if folder.is_file() and folder.suffix == ".gguf":
        return str(folder.parent), {"gguf_file": folder.name}
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder; give that of a saved Hugging Face model")
    if not (folder / "config.json").is_file():
        found = sorted(folder.glob("*.gguf"))
        if len(found) == 1:
            return str(folder), {"gguf_file": found[0].name}
        many = f"; name one of its {len(found)} GGUF files" if found else ""
        raise EvaluationError(f"{folder}: no config.json in it, so not a saved Hugging Face model{many}")
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise EvaluationError(f"{folder / 'config.json'}: can't be read as JSON") from None
    return str(folder), {}


def _transformers() -> Any:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        missing = "" if error.name == "transformers" else f" (it lacks {error.name})"
        raise EvaluationError(
            f"--hf needs the package transformers{missing}: pip install transformers, or give eval.py:build"
        ) from None
    except ImportError as error:
        raise EvaluationError(f"--hf: transformers can't be imported: {first_line(error)}") from None
    transformers.utils.logging.set_verbosity_error()
    disable: Callable[[], None] | None = getattr(transformers.utils.logging, "disable_progress_bar", None)
    if disable is not None:
        disable()
    return transformers


def _kind(config: Any, folder: Path) -> str:
    """Return "CausalLM" or "MaskedLM", by what the model says it is."""
    architectures = getattr(config, "architectures", None) or []
    for kind in ("CausalLM", "LMHeadModel", "MaskedLM"):
        if any(kind in name for name in architectures):
            return "CausalLM" if kind == "LMHeadModel" else kind
    if architectures:
        raise EvaluationError(
            f"{folder}: holds {', '.join(architectures)}, which is no causal or masked language model; "
            "write an eval.py:build for it"
        )
    return "CausalLM"


def _dtype(transformers: Any) -> Mapping[str, Any]:
    """Ask for the weights in the format in which they are stored; the argument was renamed in version 5."""
    major = int(str(transformers.__version__).partition(".")[0])
    return {"dtype": "auto"} if major >= 5 else {"torch_dtype": "auto"}


def _tokens(tokenizer: Any, words: str) -> Tensor:
    ids = tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


@contextmanager
def _offline() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _OFFLINE}
    os.environ.update(_OFFLINE)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
