"""Loss and its gradient through the model's own head, whole or by pieces of the vocabulary.

A head that does not fit into a buffer is read in pieces of rows. Whatever the model does to its logits (a scale, a
cap) it does to each one by itself, so its own code on a piece of the matrix gives that piece of the logits. One walk
over the pieces finds the normaliser, a second one back the gradient: softmax minus one at the label, over the counted
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional

from labkit.offload.body import Body
from labkit.offload.headers import Entry

IGNORED = -100
"""Label of a position that has no loss."""
Batch = Mapping[str, torch.Tensor]
Held = Callable[[int, int | None], AbstractContextManager[dict[str, torch.Tensor]]]
"""Holds piece i of the head, reading another one ahead, and yields its tensors by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Some rows of the output matrix."""

    first: int
    """First token of the vocabulary."""
    last: int
    """First token after it."""
    entry: Entry
    """Where the rows lie."""


def pieces(entry: Entry, buffer_bytes: int, held_itemsize: int) -> list[Piece]:
    """Cut an output matrix [V, d] into as few pieces of rows as fit into a buffer, equal but for the last.

    Raises:
        ValueError: not even one row fits.
    """
    vocabulary, width = entry.shape
    rows = buffer_bytes // (width * held_itemsize)
    if rows < 1:
        raise ValueError(f"a buffer of {buffer_bytes} bytes holds no row of {width} values of the head")
    n_pieces = -(-vocabulary // rows)
    each = -(-vocabulary // n_pieces)
    found = []
    for first in range(0, vocabulary, each):
        last = min(first + each, vocabulary)
        start = entry.start + first * width * entry.dtype.itemsize
        found.append(Piece(first=first, last=last, entry=replace(entry, shape=(last - first, width), start=start)))
    return found


def token_loss(logits: torch.Tensor, labels: torch.Tensor, counted: int) -> torch.Tensor:
    """Sum next-token losses, [b, T, V] and [b, T] -> a number in nats, over the tokens that a whole pass counts.

    Dividing by the tokens of the pass, not of the micro-batch, weights every token alike.
    """
    shifted = _at_least_float32(logits[:, :-1].flatten(0, 1))
    return functional.cross_entropy(shifted, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum") / counted


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(slots=True)
class Head:
    """Turns the last hidden states of all micro-batches into losses and gradients."""

    body: Body
    """The model's own code."""
    weight: str
    """Name of the output matrix in the model."""
    pieces: Sequence[Piece]
    """It, in pieces."""
    small: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What else the head has, a bias for one, by its name in the model."""
    drawing: Callable[[int], AbstractContextManager] = nullcontext
    """Gives a micro-batch the random numbers of what comes after the layers, the same ones for every piece."""

    def loss_and_gradient(
        self, batches: Sequence[Batch], hidden: list[torch.Tensor], counted: int, held: Held
    ) -> list[float]:
        """Return the loss of each micro-batch, and put its gradient in place of the last hidden states, [b, T, d] each.

        Args:
            batches: ids, mask and labels of each micro-batch.
            hidden: what the last layer returned for it.
            counted: labelled tokens of all micro-batches.
            held: gives a piece of the head.
        """
        if len(self.pieces) == 1:
            with held(0, None) as views:
                return [
                    self._whole(m, *pair, views, counted) for m, pair in enumerate(zip(batches, hidden, strict=True))
                ]
        norms = self._normalisers(batches, hidden, held)
        return self._by_pieces(batches, hidden, norms, counted, held)

    def losses(self, batches: Sequence[Batch], hidden: list[torch.Tensor], held: Held) -> list[torch.Tensor]:
        """Return the loss of every position, [b, T - 1] in nats each; positions without a label have 0."""
        return [
            _position_losses(*norm, batch)
            for norm, batch in zip(self._normalisers(batches, hidden, held), batches, strict=True)
        ]

    def likeliest(self, batch: Batch, hidden: torch.Tensor, held: Held) -> torch.Tensor:
        """Return the token with the largest logit after hidden states [b, 1, d], as [b]; the first of equal ones."""
        best = torch.full((len(hidden),), -torch.inf, device=hidden.device)
        token = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        for i, piece in enumerate(self.pieces):
            with held(i, i + 1 if i + 1 < len(self.pieces) else None) as views, torch.no_grad():
                value, place = self._logits(i, 0, batch, hidden, views)[:, -1].float().max(-1)
            token = torch.where(value > best, place + piece.first, token)
            best = torch.maximum(best, value)
        return token

    def _whole(
        self, m: int, batch: Batch, hidden: torch.Tensor, views: Mapping[str, torch.Tensor], counted: int
    ) -> float:
        leaf = hidden.detach().requires_grad_()
        with torch.enable_grad():
            loss = token_loss(self._logits(0, m, batch, leaf, views), batch["labels"], counted)
        hidden.copy_(torch.autograd.grad(loss, leaf)[0])
        return float(loss.detach())

    def _logits(
        self, i: int, m: int, batch: Batch, hidden: torch.Tensor, views: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        piece = self.pieces[i]
        rest = {name: value[piece.first : piece.last] for name, value in self.small.items()}
        with self.drawing(m):
            return self.body.logits(batch, hidden, {self.weight: views["weight"], **rest})

    def _normalisers(
        self, batches: Sequence[Batch], hidden: Sequence[torch.Tensor], held: Held
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return log of the sum of exponentials, and the label's logit, [b, T - 1] each, for each micro-batch."""
        shapes = [batch["labels"][:, 1:].shape for batch in batches]
        where = hidden[0].device
        norms = [(torch.full(s, -torch.inf, device=where), torch.zeros(s, device=where)) for s in shapes]
        n = len(self.pieces)
        for i, piece in enumerate(self.pieces):
            with held(i, i + 1 if i + 1 < n else None) as views, torch.no_grad():
                for m, batch in enumerate(batches):
                    logits = _at_least_float32(self._logits(i, m, batch, hidden[m], views)[:, :-1])
                    total, own = norms[m]
                    norms[m] = (torch.logaddexp(total, logits.logsumexp(-1)), own + _at_label(logits, batch, piece))
        return norms

    def _by_pieces(
        self,
        batches: Sequence[Batch],
        hidden: Sequence[torch.Tensor],
        norms: Sequence[tuple[torch.Tensor, torch.Tensor]],
        counted: int,
        held: Held,
    ) -> list[float]:
        gradients = [torch.zeros_like(own, dtype=torch.float32) for own in hidden]
        for i in range(len(self.pieces) - 1, -1, -1):
            with held(i, i - 1 if i else None) as views:
                for m, batch in enumerate(batches):
                    leaf = hidden[m].detach().requires_grad_()
                    with torch.enable_grad():
                        logits = self._logits(i, m, batch, leaf, views)[:, :-1]
                    upstream = _softmax_minus_label(logits.detach(), norms[m][0], batch, self.pieces[i]) / counted
                    gradients[m] += torch.autograd.grad(logits, leaf, upstream.to(logits.dtype))[0]
        for own, gradient in zip(hidden, gradients, strict=True):
            own.copy_(gradient)
        return [
            float(_position_losses(*norm, batch).sum() / counted) for norm, batch in zip(norms, batches, strict=True)
        ]


def _position_losses(total: torch.Tensor, own: torch.Tensor, batch: Batch) -> torch.Tensor:
    return (total - own).masked_fill(batch["labels"][:, 1:] == IGNORED, 0.0)


def _places(batch: Batch, piece: Piece) -> tuple[torch.Tensor, torch.Tensor]:
    """Say which positions have their label in a piece, and at which of its rows; the others point to row 0."""
    labels = batch["labels"][:, 1:]
    inside = (labels >= piece.first) & (labels < piece.last)
    return inside, (labels - piece.first).masked_fill(~inside, 0)


def _at_label(logits: torch.Tensor, batch: Batch, piece: Piece) -> torch.Tensor:
    inside, rows = _places(batch, piece)
    return logits.gather(-1, rows[..., None])[..., 0].masked_fill(~inside, 0.0)


def _softmax_minus_label(logits: torch.Tensor, total: torch.Tensor, batch: Batch, piece: Piece) -> torch.Tensor:
    inside, rows = _places(batch, piece)
    upstream = torch.exp(logits.float() - total[..., None])
    upstream.scatter_add_(-1, rows[..., None], -inside[..., None].float())
    return upstream.masked_fill((batch["labels"][:, 1:] == IGNORED)[..., None], 0.0)
