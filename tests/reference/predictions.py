"""How far the current token foretells a value, by asking the others one position at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def foretold(tokens: Sequence[int], values: Sequence[int]) -> tuple[float | None, int]:
    """Return the share of positions whose value is the commonest at the others with their token."""
    credit, positions = 0.0, 0
    for i, token in enumerate(tokens):
        others = Counter(values[j] for j in range(len(tokens)) if j != i and tokens[j] == token)
        if not others:
            continue
        positions += 1
        most = max(others.values())
        modes = [value for value, count in others.items() if count == most]
        if values[i] in modes:
            credit += 1 / len(modes)
    return (credit / positions if positions else None), positions
