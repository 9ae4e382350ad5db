"""The remedy float32-latent."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from precdoctor.remedies.intervention import Intervention
from precdoctor.remedies.remedy import Dose, Remedy

if TYPE_CHECKING:
    from torch import Tensor

    from precdoctor.observe.lineage.made import Root
    from precdoctor.remedies.quantized_use import QuantizedUse


class Float32Latent(Remedy):
    """Keeps a float32 weight beside its quantized values, which otherwise are all that is left of it.

    The program overwrites the weight by its own rounding after each step. Here the weight stays as the
    optimizer leaves it, and products get its rounded values, by the same quantizer, straight through.

    ## What it buys

    Small updates add up, where a grid swallows what is smaller than half its step. Without a finer copy
    the effective descent quality of a language model was 0.80 in INT8 (loss 0.86) and 0.006 in NVFP4 (3.33);
    stochastic rounding onto the grid brought it to 1.00 and 0.75 (0.72 and 1.52), a float32 latent weight
    with a straight-through estimator to 0.33.

    ## Bytes per parameter

    0 where the quantized values are kept in a float32 tensor, as here; where they are packed, 4 more.

    ## When not

    Where memory forbids a second copy: round stochastically onto the grid instead.

    ## By hand

    ```python
    def forward(self, x):
        w = self.weight  # float32, never overwritten
        return F.linear(x, w + (quantize(w.detach()) - w).detach())
    ```

    ## References

    - Courbariaux et al. 2015, BinaryConnect, arXiv 1511.00363 (latent weights that accumulate)
    - Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740, section 3.1
    """

    id: ClassVar[str] = "float32-latent"

    @classmethod
    def apply(cls, _: Dose, run: Intervention) -> None:
        """Leave weights as they are where rounded values of them would be written over them."""
        from precdoctor.remedies.following import Follower, follow
        from precdoctor.remedies.quantized_use import straight_through

        run.otherwise = "no weight in it is overwritten by values rounded from it"
        rounding: dict[Root, QuantizedUse] = {}

        def on_overwrite(use: QuantizedUse) -> bool:
            run.acted = True
            rounding[use.root] = use
            return True

        def instead(use: QuantizedUse) -> Tensor | None:
            known = rounding.get(use.root)
            if known is None or use.made is not None:
                return None
            return straight_through(use.tensor, use.weight(known.fresh()))

        follow(run, Follower(instead, on_overwrite=on_overwrite))
