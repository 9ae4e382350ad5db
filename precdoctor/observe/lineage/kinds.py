"""What operations do to values: which bring weights and data together, which round, which draw."""

from __future__ import annotations

import torch
from torch import Tensor

from precdoctor.observe.probe.operations import Operation

#: operations that bring parameters and data together
_USES_TEXT = """
mm addmm bmm baddbmm linear mv addmv dot vdot addr addbmm bilinear _trilinear _scaled_mm _int_mm _grouped_mm
_weight_int4pack_mm _weight_int8pack_mm convolution _convolution conv1d conv2d conv3d mkldnn_convolution
embedding embedding_bag _embedding_bag _embedding_bag_forward_only rms_norm _fused_rms_norm native_layer_norm
native_group_norm native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit
_native_batch_norm_legit_no_training _batch_norm_with_update prelu _prelu_kernel lstm gru rnn_tanh rnn_relu
lstm_cell gru_cell _thnn_fused_lstm_cell _thnn_fused_gru_cell
"""
USES = frozenset(f"aten::{name}" for name in _USES_TEXT.split())
#: operations whose floating-point results lie on a grid
_ROUNDS = frozenset(
    f"aten::{name}{suffix}"
    for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "floor_divide")
    for suffix in ("", "_")
)
#: quantization and its reverse in one operation
_FAKE = "fake_quantize_per_"
_GRIDS = ("quantize_per_tensor", "quantize_per_channel", "fused_moving_avg_obs_f", _FAKE)
#: their results take nothing but shape and format from the argument
_TEMPLATES_TEXT = """
zeros_like ones_like empty_like full_like rand_like randn_like randint_like
new_zeros new_ones new_empty new_full new_empty_strided
"""
TEMPLATES = frozenset(f"aten::{name}" for name in _TEMPLATES_TEXT.split())
ADDS = {"aten::add": 1.0, "aten::add_": 1.0, "aten::sub": -1.0, "aten::sub_": -1.0}
JOINS = ("aten::cat", "aten::stack")
SAME = frozenset(("aten::clone", "aten::alias", "aten::contiguous", "aten::_to_copy", "aten::copy_"))
NARROW = (torch.float16, torch.bfloat16)
_FLOAT8 = tuple(dtype for name in dir(torch) if name.startswith("float8") and (dtype := getattr(torch, name)))


def draws(operation: Operation) -> bool:
    """Tell whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(operation.func, "tags", ())


def is_float8(tensor: Tensor) -> bool:
    """Tell whether a tensor's format is one of 8 bits."""
    return tensor.dtype in _FLOAT8


def is_grid(tensor: Tensor) -> bool:
    """Tell whether a tensor's format holds integers, or has 8 bits."""
    return not tensor.is_floating_point() or is_float8(tensor)


def rounds(name: str, tensor: Tensor) -> bool:
    """Tell whether the results of an operation, of which one is given, lie on a grid."""
    if name in _ROUNDS or is_grid(tensor):
        return True
    space, _, operation = name.partition("::")
    return operation.lstrip("_").startswith(_GRIDS) or (
        space not in ("aten", "prims", "") and "quant" in operation
    )
