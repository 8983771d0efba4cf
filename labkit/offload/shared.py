"""What layers leave for later ones beside their hidden states: keys and values that are read again.

Such a model gives all its layers one box, empty at first: one layer puts something there, later ones read it. On the
way back those come first, so the gradient by what they read is kept until the layer that left it is differentiated;
there it is the gradient of one more result.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from labkit.offload.headers import CannotStream

Place = tuple[str, Hashable]
"""Name of the argument that is a box, and the key within it."""
Values = tuple[torch.Tensor, ...]


@dataclass(slots=True, eq=False)
class Shared:
    """The boxes of one micro-batch."""

    boxes: dict[str, UserDict] = field(default_factory=dict)
    """By the name of the argument that they are handed to layers as."""
    left_by: dict[Place, int] = field(default_factory=dict)
    """The layer that left something, by its place."""
    values: dict[Place, Values] = field(default_factory=dict)
    """What it left."""
    _gradients: dict[Place, list[torch.Tensor | None]] = field(default_factory=dict)
    _lent: dict[Place, Values] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Sequence[tuple[tuple, dict[str, Any]]]) -> Shared:
        """Return the boxes among the arguments of layers that have not been run yet."""
        named = arguments[0][1] if arguments else {}
        return cls({name: value for name, value in named.items() if isinstance(value, UserDict) and not value})

    def note(self, i: int) -> None:
        """Note what layer i left, on the way up.

        Raises:
            CannotStream: it replaced what another one had left.
        """
        for name, box in self.boxes.items():
            for key, value in box.items():
                if self.values.setdefault((name, key), value) is not value:
                    raise CannotStream(f"layer {i} replaces what layer {self.left_by[name, key]} left in {name}")
                self.left_by.setdefault((name, key), i)

    def lend(self, i: int, lowest: int) -> list[torch.Tensor]:
        """Put leaves in the places that layer i can read and a trained layer left; return them."""
        read = [place for place, writer in self.left_by.items() if lowest <= writer < i]
        self._lent = {place: tuple(v.detach().requires_grad_() for v in self.values[place]) for place in read}
        self._put(self._lent)
        return [leaf for leaves in self._lent.values() for leaf in leaves]

    def left(self, i: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return what layer i, just run again, left, and the gradient by it; without what no layer read."""
        places = [place for place, writer in self.left_by.items() if writer == i and place in self._gradients]
        pairs = [
            pair
            for name, key in places
            for pair in zip(self.boxes[name][key], self._gradients.pop((name, key)), strict=True)
        ]
        pairs = [(value, own) for value, own in pairs if own is not None and value.requires_grad]
        return [value for value, _ in pairs], [own for _, own in pairs]

    def take_back(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Keep the gradients by what was lent, in its order, and let go of every graph."""
        found = iter(gradients)
        for place, leaves in self._lent.items():
            own = [next(found) for _ in leaves]
            before = self._gradients.get(place, [None] * len(own))
            self._gradients[place] = [_sum(one, other) for one, other in zip(before, own, strict=True)]
        self._lent = {}
        self._put(self.values)

    def lend_empty(self, i: int, trained: bool) -> list[torch.Tensor]:
        """Put tensors of the right shape in the places that layer i can read, to count their memory."""
        read = [place for place, writer in self.left_by.items() if writer < i]
        lent = {place: tuple(torch.empty(v.shape, dtype=v.dtype) for v in self.values[place]) for place in read}
        self._put(lent)
        return [value.requires_grad_(trained) for values in lent.values() for value in values]

    def _put(self, values: dict[Place, Values]) -> None:
        for (name, key), value in values.items():
            self.boxes[name][key] = value


def _sum(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    """Add two gradients, either of which there may not be."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
