"""What is stored of a model: tensors by name; of a quantized layer codes, scales, and adapters if any."""

import torch

from tiny_lm.layers import SCALING, CodesLinear, LoRALinear, linears
from tiny_lm.model import LanguageModel, ModelConfig
from tiny_lm.quantizers import FORMATS, pack, unpack


@torch.no_grad()
def store(model, fmt_name=None):
    """Return what is stored of a trained model, the matrices of its blocks in a format if one is given."""
    fmt = FORMATS.get(fmt_name)
    layers = dict(linears(model))
    inside = tuple(f"{name}." for name in layers)
    tensors = {name: p for name, p in model.named_parameters() if not name.startswith(inside)}
    for name, layer in layers.items():
        for part, tensor in stored_layer(layer, fmt).items():
            tensors[f"{name}.{part}"] = tensor
    tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return {"format": fmt_name, "d_model": model.config.d_model, "tensors": tensors}


def stored_layer(layer, fmt):
    if isinstance(layer, LoRALinear) and layer.fmt is not None:
        return {
            "codes": layer.packed,
            "scale": layer.scale,
            "lora_a": layer.lora_a,
            "lora_b": layer.lora_b,
        }
    if isinstance(layer, CodesLinear):  # on the grid of its scales already
        return {"codes": pack(fmt.codes(layer.weight, layer.scale), fmt.bits), "scale": layer.scale}
    weight = layer.base() + layer.delta() if isinstance(layer, LoRALinear) else layer.weight
    if fmt is None:
        return {"weight": weight}
    codes, scale = fmt.quantize(weight)
    return {"codes": pack(codes, fmt.bits), "scale": scale}


@torch.no_grad()
def restore(artefact):
    """Return the model that an artefact stands for, in float32."""
    model = LanguageModel(ModelConfig(d_model=artefact["d_model"]))
    tensors, fmt = dict(artefact["tensors"]), FORMATS.get(artefact["format"])
    for name, layer in linears(model):
        if f"{name}.codes" not in tensors:
            continue
        codes = unpack(tensors.pop(f"{name}.codes"), layer.weight.shape, fmt)
        weight = fmt.dequantize(codes, tensors.pop(f"{name}.scale"))
        if f"{name}.lora_a" in tensors:
            weight += SCALING * tensors.pop(f"{name}.lora_b") @ tensors.pop(f"{name}.lora_a")
        tensors[f"{name}.weight"] = weight
    model.load_state_dict(tensors)
    return model


def n_bytes(artefact):
    return sum(tensor.nbytes for tensor in artefact["tensors"].values())
