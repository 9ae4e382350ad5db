"""Pretrain a model, round it to each format, fine-tune it in each order, and compare what is stored.

Writes as JSON the loss of every validation window under each model, and how their weights and codes differ.
"""

import argparse
import json
from pathlib import Path

import torch

from tiny_lm import comparing
from tiny_lm.artefact import n_bytes, restore, store
from tiny_lm.data import DOCUMENTATION, MODULES, ByteText
from tiny_lm.layers import linears
from tiny_lm.model import LanguageModel, ModelConfig
from tiny_lm.quantizers import FORMATS
from tiny_lm.recipes import learning_rate, prepare, pretraining_rate
from tiny_lm.training import saved_for_backward, train, window_losses


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--pretrain-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=300, help="of each fine-tuning")
    parser.add_argument(
        "--orders", nargs="*", choices=FORMATS, default=[], help="fine-tune for these formats"
    )
    parser.add_argument("--mixed", action="store_true", help="fine-tune in mixed precision and bfloat16 too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default=None, metavar="DIR", help="write what is stored of the models here")
    parser.add_argument("--results", required=True, metavar="FILE")
    return parser.parse_args()


class Comparison:
    """One pretrained model, what is made of it, and the figures of both."""

    def __init__(self, args):
        self.args = args
        self.old = ByteText(DOCUMENTATION, ModelConfig.max_seq_len)
        self.new = ByteText(MODULES, ModelConfig.max_seq_len)
        self.artefacts, self.models = {}, {}
        self.base = LanguageModel(ModelConfig(d_model=args.dim))
        train(self.base, self.old, args.pretrain_steps, pretraining_rate(args.dim), seed=args.seed)
        self.add("base", store(self.base))

    def add(self, name, artefact):
        """Keep an artefact, and the model that is read from it."""
        print(name, flush=True)
        self.artefacts[name] = artefact
        self.models[name] = model = restore(artefact)
        return model

    def round_base(self):
        for fmt in FORMATS:
            self.add(f"base {fmt}", store(self.base, fmt))
        for dtype in (torch.float16, torch.bfloat16):
            self.add(f"base {dtype}".replace("torch.", ""), store(restore(store(self.base)).to(dtype)))
        whole = restore(store(self.base))
        for _, layer in linears(whole):
            layer.weight.data.round_()
        self.add("base whole numbers", store(whole))

    def finetune(self, recipe, fmt=None):
        torch.manual_seed(self.args.seed)
        model = prepare(self.base, recipe, FORMATS.get(fmt))
        lr = learning_rate(recipe, self.args.dim)
        return train(model, self.new, self.args.steps, lr, seed=self.args.seed, autocast=recipe == "autocast")

    def all_orders(self):
        full, adapted = self.finetune("finetune"), self.finetune("finetune-lora")
        self.add("finetune", store(full))
        self.add("finetune-lora", store(adapted))
        merging = {}
        for fmt in self.args.orders:
            # fine-tuned, then rounded
            self.add(f"finetune {fmt}", store(full, fmt))
            self.add(f"finetune-lora {fmt}", store(adapted, fmt))
            # rounded, then fine-tuned
            self.add(f"codes {fmt}", store(self.finetune("codes", fmt), fmt))
            self.add(f"qat {fmt}", store(self.finetune("qat", fmt), fmt))
            lora = self.finetune("lora", fmt)
            merging[fmt] = comparing.merging(lora)
            merged = self.add(f"lora {fmt}", store(lora, fmt))
            self.add(f"lora-merged {fmt}", store(merged, fmt))
            dequantized = self.finetune("dequantized", fmt)
            self.add(f"dequantized {fmt}", store(dequantized))
            self.add(f"dequantized-again {fmt}", store(dequantized, fmt))
        return merging

    def precisions(self):
        """Fine-tune in mixed precision and all in bfloat16; return what that holds, against float32."""
        held = {}
        for recipe in ("finetune", "autocast", "bfloat16"):
            model = prepare(self.base, recipe)
            saved = saved_for_backward(model, self.new, autocast=recipe == "autocast")
            held[recipe] = {
                "weights": sum(p.nbytes for p in model.parameters()),
                "saved": sum(t.untyped_storage().nbytes() for t in saved),
                "copies": comparing.lower_copies(model, saved),
            }
            if recipe not in self.models:
                self.add(recipe, store(self.finetune(recipe)))
        return held

    def figures(self, name):
        """Return what is known of one model: its size, its losses, how it differs from others."""
        artefact, model = self.artefacts[name], self.models[name]
        fmt, weights = artefact["format"], comparing.matrices(model)
        figures = {"bytes": n_bytes(artefact), "sqnr_db": {}, "codes_differ": {}}
        for text, data in (("old", self.old), ("new", self.new)):
            figures[text] = [round(loss, 6) for loss in window_losses(model, data).tolist()]
        for other in ("base", "finetune"):
            if other in self.models:
                reference = comparing.matrices(self.models[other])
                figures["sqnr_db"][other] = comparing.sqnr_db(reference, weights)
            if fmt and f"{other} {fmt}" in self.artefacts:
                differ = comparing.codes_that_differ(artefact, self.artefacts[f"{other} {fmt}"])
                figures["codes_differ"][other] = differ
        return figures


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    comparison = Comparison(args)
    comparison.round_base()
    merging = comparison.all_orders() if args.orders else None
    precisions = comparison.precisions() if args.mixed else None
    results = {
        "dim": args.dim,
        "pretrain_steps": args.pretrain_steps,
        "steps": args.steps,
        "seed": args.seed,
        "weights": sum(p.numel() for p in comparison.base.parameters()),
        "matrix_weights": comparing.matrices(comparison.base).numel(),
        "models": {name: comparison.figures(name) for name in comparison.models},
        "merging": merging,
        "precisions": precisions,
    }
    Path(args.results).write_text(json.dumps(results) + "\n", encoding="utf-8")
    if args.keep:
        folder = Path(args.keep)
        folder.mkdir(parents=True, exist_ok=True)
        for name, artefact in comparison.artefacts.items():
            torch.save(artefact, folder / f"{name.replace(' ', '-')}.pt")


if __name__ == "__main__":
    main()
