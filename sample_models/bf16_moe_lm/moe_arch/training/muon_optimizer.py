"""Muon for the hidden weight matrices, AdamW for everything else."""

import torch


@torch.no_grad()
def newton_schulz(g, steps=5, eps=1e-7):
    """Approximately orthogonalize a matrix (quintic Newton-Schulz iteration, Jordan et al. 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.float()
    transposed = x.shape[0] > x.shape[1]
    if transposed:
        x = x.T
    x = x / (x.norm() + eps)
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if transposed else x


class Muon(torch.optim.Optimizer):
    """Momentum SGD whose update is orthogonalized, scaled to the RMS of an AdamW update."""

    def __init__(self, params, lr=1e-3, momentum=0.95, nesterov=True, ns_steps=5, weight_decay=0.0):
        defaults = dict(
            lr=lr, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, weight_decay=weight_decay
        )
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buf = state["momentum_buffer"]
                buf.lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(buf, group["momentum"]) if group["nesterov"] else buf
                update = newton_schulz(g, group["ns_steps"])
                scale = 0.2 * max(p.shape) ** 0.5
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.type_as(p), alpha=-group["lr"] * scale)
        return loss


def split_params(model):
    """Hidden 2-D matrices go to Muon; embeddings, head, router and norms go to AdamW."""
    muon_params, adamw_params = [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.ndim == 2 and not any(key in name for key in ("embed", "lm_head", "router")):
            muon_params.append(p)
        else:
            adamw_params.append(p)
    return muon_params, adamw_params


def create_optimizers(model, lr=1e-3, weight_decay=0.0):
    muon_params, adamw_params = split_params(model)
    muon_opt = Muon(muon_params, lr=lr, weight_decay=weight_decay)
    adamw_opt = torch.optim.AdamW(
        adamw_params,
        lr=lr * 0.3,
        betas=(0.9, 0.95),
        weight_decay=weight_decay,
    )
    return [muon_opt, adamw_opt]
