"""How far models, and what is stored of them, differ."""

import torch

from tiny_lm.layers import linears
from tiny_lm.quantizers import FORMATS, unpack


def matrices(model):
    """Return the elements of all matrices in the blocks in one vector."""
    return torch.cat([layer.weight.detach().float().flatten() for _, layer in linears(model)])


def sqnr_db(reference, other):
    """Return the power of the weights over that of the difference, None where there is no difference."""
    signal, noise = (x.double().square().sum() for x in (reference, reference - other))
    return 10 * torch.log10(signal / noise).item() if noise > 0 else None


def codes(artefact):
    """Return the codes of all matrices in one vector."""
    fmt = FORMATS[artefact["format"]]
    packed = [tensor for name, tensor in artefact["tensors"].items() if name.endswith(".codes")]
    return torch.cat([unpack(tensor, (-1,), fmt) for tensor in packed])


def codes_that_differ(one, other):
    """Return the share of codes that differ."""
    return (codes(one) != codes(other)).double().mean().item()


def lower_copies(model, tensors):
    """Return how many matrices of a model are among the tensors a second time, in bfloat16."""
    copies = [t.detach().flatten() for t in tensors if t.dtype == torch.bfloat16]
    matrices = [p.detach() for p in model.parameters() if p.dim() == 2 and p.dtype == torch.float32]
    both = [[w.bfloat16().flatten(), w.T.bfloat16().flatten()] for w in matrices]
    return sum(any(torch.equal(copy, way) for copy in copies for way in ways) for ways in both)


@torch.no_grad()
def merging(model):
    """Return what is left of adapters when their quantized base and they are added and rounded again.

    `kept` is the projection of the change that is stored on the change that the adapters mean: 1 if all of
    it is. `error` is the size of what differs from it, relative to it. `unchanged` is the share of codes
    that the adapters do not change, the scales left as they are.
    """
    meant, stored, same = [], [], []
    for _, layer in linears(model):
        base, delta, fmt = layer.base(), layer.delta(), layer.fmt
        meant.append(delta.flatten())
        stored.append((fmt.dequantize(*fmt.quantize(base + delta)) - base).flatten())
        same.append((fmt.codes(base + delta, layer.scale) == fmt.codes(base, layer.scale)).flatten())
    meant, stored = torch.cat(meant).double(), torch.cat(stored).double()
    return {
        "kept": (stored @ meant / (meant @ meant)).item(),
        "error": ((stored - meant).norm() / meant.norm()).item(),
        "unchanged": torch.cat(same).double().mean().item(),
    }
