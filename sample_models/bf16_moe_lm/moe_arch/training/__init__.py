from moe_arch.training.muon_optimizer import Muon, create_optimizers
from moe_arch.training.trainer import Trainer

__all__ = ["Muon", "Trainer", "create_optimizers"]
