"""Train a small language model whose linear layers have 4-bit weights, and others to compare it with."""

import argparse
import json
import math
from functools import partial
from pathlib import Path

import torch

from small_lm import ceilings, memory
from small_lm.data import DEFAULT_CORPUS, DEFAULT_START, Corpus
from small_lm.layers import FP4Linear, convert
from small_lm.model import SIZES, LanguageModel
from small_lm.recipes import RECIPES
from small_lm.training import Trainer, create_optimizer

# tokens of the training text, windows in a batch, windows at most in an evaluation
DATA = {"cpu": (5_200, 4, 1024), "full": (500_000, 24, 2400)}


def parse_args():
    recipes = "\n".join(f"  {name:<28}{recipe.about}" for name, recipe in RECIPES.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"recipes:\n{recipes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", choices=RECIPES, default="fp4-reported", metavar="NAME", help="see below")
    parser.add_argument("--size", choices=SIZES, default="cpu", help="full: 384d, 6 layers, for a GPU")
    parser.add_argument("--updates", type=int, default=1250, help="optimizer steps, of 4 batches each")
    parser.add_argument("--eval-every", type=int, default=250, help="in updates")
    parser.add_argument("--data", default=None, help='text file, or "stdlib": Python\'s own modules')
    parser.add_argument("--split", choices=["leaky", "clean"], default="leaky")
    parser.add_argument("--tokens", type=int, default=None, help="of the training text")
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--accumulate", type=int, default=4, help="batches for one update")
    parser.add_argument("--lr", type=float, default=1e-3, help="at 384 dimensions; scaled by 1/sqrt(width)")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-amp", action="store_true", help="float32 on CUDA too")
    parser.add_argument("--cpu-fallback", action="store_true", help="fp4-reported: no quantization on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="more do not pay for a model this small")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--save", default=None, help="write the model's state here at the end")
    parser.add_argument("--results", default=None, help="write what was measured here, as JSON")
    return parser.parse_args()


def build_model(recipe, size, cpu_fallback=False):
    linear = recipe.linear
    if cpu_fallback and linear is FP4Linear:
        linear = partial(linear, cpu_fallback=True)
    model = LanguageModel(SIZES[size], linear, recipe.quantized, recipe.tied)
    if recipe.converted is not None:
        convert(model, recipe.converted)
    return model


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    recipe, config = RECIPES[args.recipe], SIZES[args.size]
    n_tokens, batch_size, eval_windows = DATA[args.size]
    amp = args.device.startswith("cuda") and not args.no_amp

    data = args.data or ("stdlib" if args.size == "full" else str(DEFAULT_CORPUS))
    corpus = Corpus(
        data,
        config.vocab_size,
        config.max_seq_len,
        args.tokens or n_tokens,
        split=args.split,
        start=DEFAULT_START if data == str(DEFAULT_CORPUS) else 0,
        seed=args.seed,
    )
    model = build_model(recipe, args.size, args.cpu_fallback).to(args.device)
    total, quantized, rest = memory.count(model)
    print(f"Training Small model with AdamW optimizer: {recipe.about}")
    print(f"Mixed Precision: {'BF16' if amp else 'off'}")
    print(f"Total parameters: {total:,}")
    if quantized:
        print(f"Quantized parameters: {quantized:,} ({quantized / total:.1%})")
        print(f"FP32 parameters: {rest:,} ({rest / total:.1%})")
        print(f"Estimated memory savings: ~{memory.estimated_savings(model):.1%}", flush=True)

    scale = math.sqrt(384 / config.d_model)
    optimizer = create_optimizer(
        model, args.lr * scale * recipe.lr, args.lr * recipe.lr, args.weight_decay, recipe.fused
    )
    trainer = Trainer(
        model,
        optimizer,
        corpus,
        updates=args.updates,
        batch_size=args.batch_size or batch_size,
        accumulate=args.accumulate,
        device=args.device,
        amp=amp,
        eval_every=args.eval_every,
        eval_windows=eval_windows,
        seed=args.seed,
    )
    seconds = trainer.train()
    print(f"Training completed in {seconds:.1f} seconds")
    loss, accuracy = trainer.evaluate_honestly()
    print(f"Text of its own: Loss={loss:.3f}, Acc={accuracy:.1%}, PPL={math.exp(min(loss, 20)):.1f}")
    unquantized = None
    if quantized:
        twin = LanguageModel(config, tied=model.head.weight is model.embedding.weight).to(args.device)
        twin.load_state_dict(model.state_dict())
        unquantized = trainer.evaluate(corpus.val_batches(32, eval_windows), twin)
        print(f"Without the quantizer: Loss={unquantized[0]:.3f}, Acc={unquantized[1]:.1%}")
    held, packed = memory.held_bytes(model), memory.packed_bytes(model, recipe.bits)
    print(f"Memory of the weights: {held / 1e6:.3f} MB held, {packed / 1e6:.3f} MB if packed", flush=True)

    if args.save:
        torch.save(model.state_dict(), args.save)
    if args.results:
        results = {
            "recipe": args.recipe,
            "size": args.size,
            "split": args.split,
            "updates": args.updates,
            "history": trainer.history,
            "honest": {"loss": loss, "accuracy": accuracy},
            "unquantized": unquantized and dict(zip(("loss", "accuracy"), unquantized, strict=True)),
            "seconds": seconds,
            "kept_by_decay": trainer.kept,
            "text": {
                "tokens": len(corpus.tokens),
                "majority_share": ceilings.majority_share(corpus.tokens),
                "bigram_ceiling": ceilings.bigram_ceiling(corpus.tokens),
            },
            "context_free_share": ceilings.context_free_share(
                model, corpus.val_batches(32, eval_windows), args.device
            ),
            "parameters": {"total": total, "quantized": quantized, "float32": rest},
            "estimated_savings": memory.estimated_savings(model),
            "held_bytes": held,
            "packed_bytes": packed,
            "training_bytes": memory.training_bytes(model, optimizer),
        }
        Path(args.results).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
