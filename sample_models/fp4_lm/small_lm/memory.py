"""What a model's weights cost in memory: as the report estimates it, as held, as it could be packed."""

from small_lm.layers import QUANTIZED


def quantized_layers(model):
    return [layer for layer in model.modules() if isinstance(layer, QUANTIZED)]


def count(model):
    """Return (total, quantized, float32) numbers of weights."""
    weights = {id(p): p for p in model.parameters()}
    total = sum(p.numel() for p in weights.values())
    layers = {id(layer.weight): layer.weight for layer in quantized_layers(model)}
    outside = [w for key, w in layers.items() if key not in weights]  # in buffers
    total += sum(w.numel() for w in outside)
    quantized = sum(w.numel() for w in layers.values())
    return total, quantized, total - quantized


def estimated_savings(model):
    """Return the share saved if a quantized weight took one byte, against the same model in float32."""
    total, quantized, rest = count(model)
    return 1 - (quantized + 4 * rest) / (4 * total)


def held_bytes(model):
    """Return the bytes of weights and caches that exist."""
    tensors = {id(t): t for t in (*model.parameters(), *(layer.weight for layer in quantized_layers(model)))}
    caches = sum(layer.cache_bytes() for layer in quantized_layers(model))
    return sum(t.nbytes for t in tensors.values()) + caches


def training_bytes(model, optimizer):
    """Return the bytes held, of what has gradients their bytes too, and the optimizer's state."""
    stepped = [p for p in optimizer.state if optimizer.state[p]]
    state = [t for p in stepped for t in optimizer.state[p].values() if t.dim()]
    return held_bytes(model) + sum(p.nbytes for p in stepped) + sum(t.nbytes for t in state)


def packed_bytes(model, bits):
    """Return the bytes of the weights with quantized ones stored as codes and scales alone."""
    _, quantized, rest = count(model)
    return quantized * bits / 8 + 4 * rest
