from moe_arch.model.transformer import ModelConfig, MoETransformer

__all__ = ["MoETransformer", "ModelConfig"]
