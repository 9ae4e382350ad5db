"""Train a small mixture-of-experts language model on a text file."""

import argparse

import torch
from moe_arch.data import DEFAULT_CORPUS, VOCAB_SIZE, ByteDataset
from moe_arch.model import ModelConfig, MoETransformer
from moe_arch.training import Trainer, create_optimizers


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(DEFAULT_CORPUS), help="text file to train on")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3, help="Muon lr; AdamW gets 0.3x")
    parser.add_argument("--warmup-steps", type=int, default=10)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="more do not pay for a model this small")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--amp", action="store_true", help="bf16 autocast, for --dtype float32")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save", default=None, help="write a checkpoint here at the end")
    return parser.parse_args()


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    dataset = ByteDataset(args.data, seq_len=args.seq_len, seed=args.seed)
    config = ModelConfig(
        vocab_size=VOCAB_SIZE,
        dim=args.dim,
        n_layers=args.layers,
        n_heads=args.heads,
        n_experts=args.experts,
        expert_dim=2 * args.dim,
        max_seq_len=args.seq_len,
    )
    model = MoETransformer(config)
    if args.dtype == "bfloat16":
        model = model.to(dtype=torch.bfloat16)
    model = model.to(args.device)
    n_params = sum(p.numel() for p in model.parameters())
    print(f"{n_params / 1e6:.2f}M parameters, {args.dtype}, {args.device}", flush=True)

    optimizers = create_optimizers(model, lr=args.lr, weight_decay=args.weight_decay)
    trainer = Trainer(
        model,
        optimizers,
        dataset,
        total_steps=args.steps,
        batch_size=args.batch_size,
        warmup_steps=args.warmup_steps,
        amp=args.amp,
        device=args.device,
        log_every=args.log_every,
    )
    trainer.train()
    print(f"validation loss {trainer.evaluate():.4f}", flush=True)
    if args.save:
        trainer.save(args.save)
        print(f"saved {args.save}", flush=True)


if __name__ == "__main__":
    main()
