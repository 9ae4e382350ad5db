"""Fine-tune a small language model and store it quantized: quantized first, last, or all the way through."""

import argparse

import torch

from tiny_lm.artefact import n_bytes, restore, store
from tiny_lm.data import DOCUMENTATION, MODULES, ByteText
from tiny_lm.model import LanguageModel, ModelConfig
from tiny_lm.quantizers import FORMATS
from tiny_lm.recipes import NEED_FORMAT, RECIPES, learning_rate, prepare, pretraining_rate
from tiny_lm.training import train, window_losses


def parse_args():
    recipes = "\n".join(f"  {name:<15}{about}" for name, about in RECIPES.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"recipes:\n{recipes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", choices=RECIPES, default="finetune", metavar="NAME", help="see below")
    parser.add_argument("--format", choices=FORMATS, default=None, help="of the matrices in the blocks")
    parser.add_argument("--dim", type=int, default=64, help="width of the model")
    parser.add_argument("--base", default=None, help="a pretrained model; without it one is trained first")
    parser.add_argument("--pretrain-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=300, help="of the fine-tuning")
    parser.add_argument("--lr", type=float, default=None, help="of the fine-tuning")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="more do not pay for a model this small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-base", default=None, help="write the pretrained model here")
    parser.add_argument("--save", default=None, help="write the fine-tuned model here")
    args = parser.parse_args()
    if args.format is None and args.recipe in NEED_FORMAT:
        args.format = "int4-g64"
    return args


def pretrain(args, text):
    model = LanguageModel(ModelConfig(d_model=args.dim))
    lr = pretraining_rate(args.dim)
    return train(model, text, args.pretrain_steps, lr, args.batch_size, args.seed, log_every=args.log_every)


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    seq_len = ModelConfig.max_seq_len
    old, new = ByteText(DOCUMENTATION, seq_len), ByteText(MODULES, seq_len)

    if args.base:
        base = restore(torch.load(args.base, weights_only=True))
    else:
        print(f"Pretraining on {DOCUMENTATION.name}", flush=True)
        base = pretrain(args, old)
    if args.save_base:
        torch.save(store(base), args.save_base)

    print(f"Fine-tuning on {MODULES.name}: {RECIPES[args.recipe]}", flush=True)
    model = prepare(base, args.recipe, FORMATS.get(args.format))
    lr = args.lr or learning_rate(args.recipe, base.config.d_model)
    autocast = args.recipe == "autocast"
    train(model, new, args.steps, lr, args.batch_size, args.seed, log_every=args.log_every, autocast=autocast)

    artefact = store(model, None if args.recipe == "dequantized" else args.format)
    final = restore(artefact)
    for text, path in ((new, MODULES), (old, DOCUMENTATION)):
        print(f"validation loss {window_losses(final, text).mean():.4f} on {path.name}")
    print(f"stored: {n_bytes(artefact):,} bytes, {artefact['format'] or 'not quantized'}", flush=True)
    if args.save:
        torch.save(artefact, args.save)


if __name__ == "__main__":
    main()
