"""What the shadow has to know of an operation: what it writes and may lose, and where it starts anew."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

_LAYERS_TEXT = """
mm addmm bmm baddbmm linear mv addmv convolution _convolution conv1d conv2d conv3d mkldnn_convolution
conv_transpose1d conv_transpose2d conv_transpose3d embedding embedding_bag _embedding_bag
_embedding_bag_forward_only rms_norm _fused_rms_norm native_layer_norm native_group_norm native_batch_norm
cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
_batch_norm_with_update lstm gru rnn_tanh rnn_relu lstm_cell gru_cell _thnn_fused_lstm_cell
_thnn_fused_gru_cell _scaled_mm _grouped_mm bilinear _trilinear
"""
#: operations that are a layer where one argument is a weight
_LAYERS = frozenset(_LAYERS_TEXT.split())
_RESTARTS_TEXT = """
round floor ceil trunc fix sign sgn heaviside floor_divide remainder fmod frac nextafter
_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
_scaled_dot_product_fused_attention_overrideable native_dropout
_linalg_svd _linalg_eigh linalg_eig linalg_qr geqrf _fft_r2c _fft_c2r _fft_c2c
fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
_fake_quantize_learnable_per_tensor_affine batch_norm_update_stats
uniform normal bernoulli random exponential cauchy log_normal geometric
"""
#: jumps, random numbers, and operations of which nothing can be said: what comes out counts as exact
_RESTARTS = frozenset(_RESTARTS_TEXT.split())
_IGNORED_TEXT = """
empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize set detach lift_fresh
eq ne lt le gt ge isnan isinf isfinite logical_and logical_or logical_not argmax argmin nonzero is_nonzero
sym_size sym_stride sym_numel _linalg_check_errors _assert_async _assert_tensor_metadata
"""
#: memory that holds nothing yet, and what has no values of its own
_IGNORED = frozenset(_IGNORED_TEXT.split())
_MOVES_TEXT = """
copy clone contiguous cat stack index index_select gather index_put _index_put_impl scatter index_copy
masked_fill masked_scatter masked_select where slice_scatter select_scatter diagonal_scatter repeat
expand_copy flip roll tril triu abs neg relu max min amax amin maximum minimum clamp clamp_min clamp_max
sort topk constant_pad_nd diag_embed _unsafe_index zeros_like fill zero index_fill unfold_copy
repeat_interleave _to_copy take kthvalue median max_pool2d_with_indices _reshape_copy view_copy permute_copy
"""
#: they bring values elsewhere and change none: exact where what they get is, in the same format
_MOVES = frozenset(_MOVES_TEXT.split())
_CANCELS_TEXT = """
add sub rsub addcmul addcdiv lerp _cdist_forward _euclidean_dist baddbmm addmm addbmm addmv addr
_linalg_solve_ex linalg_inv_ex linalg_cholesky_ex linalg_solve_triangular cholesky_solve cholesky_inverse
triangular_solve linalg_lstsq linalg_ldl_solve linalg_lu_solve var std var_mean std_mean
"""
#: digits can cancel in them, so that little is left of what their arguments hold
_CANCELS = frozenset(_CANCELS_TEXT.split())
#: they are zero where their argument is 1: of what is left of it beside 1 they keep as few digits as it has
_VANISHES = frozenset(("log", "log2", "log10", "acos", "acosh"))
#: they make of a relative error, however small the value, one that counts
_MAGNIFIERS = frozenset(("log", "log2", "log10", "log1p", "reciprocal", "rsqrt", "logit"))
_REDUCTIONS_TEXT = """
sum mean norm linalg_vector_norm var std var_mean std_mean cumsum logsumexp _softmax _log_softmax prod cumprod
logcumsumexp pow square nansum dot vdot _cdist_forward _euclidean_dist native_layer_norm native_group_norm
mse_loss l1_loss smooth_l1_loss huber_loss nll_loss_forward binary_cross_entropy
"""
#: sums, and the squares that go into them
_REDUCTIONS = frozenset(_REDUCTIONS_TEXT.split())
#: logarithms of sums: gradient goes by the differences of what they get
_LOGS = frozenset(("logsumexp", "logaddexp", "logaddexp2", "logcumsumexp"))
#: probabilities and their logarithms, whose differences count
_PROBABILITIES = frozenset(("_softmax", "_log_softmax", "logsumexp"))
_OVERWRITES = frozenset(("copy", "fill", "zero"))
_FACTORIES_TEXT = """
zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full eye scalar_tensor arange linspace
logspace
"""
_FACTORIES = frozenset(_FACTORIES_TEXT.split())
_COUNTING = frozenset(("arange", "linspace", "logspace"))
_WAVES = frozenset(("sin", "cos"))
#: they give the indices of elements that they choose by their values
_CHOOSES = frozenset(("topk", "sort", "argmin", "argmax", "kthvalue", "min", "max"))
#: the same values in another place or format: a weight stays a weight
_SAME = frozenset(("_to_copy", "clone", "contiguous", "expand_copy"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An operation, by what concerns the shadow."""

    #: name without namespace, prefix and underscore of those that write in place: "add"
    name: str
    #: positions of the arguments that it writes into
    writes: tuple[int, ...] = ()
    #: names of the keyword arguments that it writes into
    outs: tuple[str, ...] = ()
    ignored: bool = False
    restarts: bool = False
    layer: bool = False
    moves: bool = False
    cancels: bool = False
    vanishes: bool = False
    magnifies: bool = False
    reduces: bool = False
    #: old values of what it writes into do not count
    overwrites: bool = False
    factory: bool = False
    #: a factory whose values its format may not hold
    counting: bool = False
    wave: bool = False
    same: bool = False
    log: bool = False
    probabilities: bool = False
    chooses: bool = False

    @property
    def adds(self) -> bool:
        """Tell whether absolute errors, not relative ones, pass through."""
        return self.cancels and not self.name.startswith(("linalg", "_linalg", "chol", "_cdist", "_eucl"))


@functools.cache
def kind_of(func: Any) -> Kind:
    """Return what concerns the shadow of an operation, an overload of torch's."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return Kind(name="", restarts=True)
    space, _, full = schema.name.partition("::")
    written = [(i, a) for i, a in enumerate(schema.arguments) if a.alias_info and a.alias_info.is_write]
    writes = tuple(i for i, a in written if not a.kwarg_only)
    outs = tuple(a.name for _, a in written if a.kwarg_only)
    name = full.removeprefix("_foreach_").removeprefix("_fused_")
    name = name.rstrip("_") if written else name
    random = torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
    return Kind(
        name=name,
        writes=writes,
        outs=outs,
        ignored=name in _IGNORED or any(a.alias_info and not a.alias_info.is_write for a in schema.arguments),
        restarts=space != "aten" or random or bool(outs) or name in _RESTARTS,
        layer=name in _LAYERS,
        moves=name in _MOVES,
        cancels=name in _CANCELS,
        vanishes=name in _VANISHES,
        magnifies=name in _MAGNIFIERS,
        reduces=name in _REDUCTIONS,
        overwrites=name in _OVERWRITES or random,
        factory=name in _FACTORIES,
        counting=name in _COUNTING,
        wave=name in _WAVES,
        same=name in _SAME,
        log=name in _LOGS,
        probabilities=name in _PROBABILITIES,
        chooses=name in _CHOOSES,
    )
