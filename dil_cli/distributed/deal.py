"""Which process takes which pairs: a pure function of their lengths, so that every process knows all hands."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def deal(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Indices into `sizes`, each once, in `hands` ascending lists whose sums are nearly equal.

    The longest is dealt first, each to the hand that has least; the lists may be empty where there are few.
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    least = [(0, hand) for hand in range(hands)]
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        total, hand = least[0]
        dealt[hand].append(index)
        heapq.heapreplace(least, (total + sizes[index], hand))
    return [sorted(hand) for hand in dealt]
