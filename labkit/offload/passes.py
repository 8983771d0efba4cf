"""One pass of a batch through a streamed model: up without gradient, through the head, and down again.

The schedule is vertical (L2L, arXiv 2002.05645; GreedySnake, arXiv 2512.17570): a layer is loaded once and applied to
every micro-batch before the next one. On the way down each layer is recomputed with its graph and differentiated at
once, so no graph outlives the buffer that its weights lie in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch

from labkit.offload.anatomy import as_found
from labkit.offload.body import Body, Calls, run_layer
from labkit.offload.boundaries import Block, InMemory, Spilled
from labkit.offload.draws import Asked, drawn_from
from labkit.offload.head import Batch, Head
from labkit.offload.readers import Reader
from labkit.offload.skeleton import Skeleton, weights_of
from labkit.offload.slots import SlotPool
from labkit.offload.store import Store


class NotFinite(FloatingPointError):
    """A hidden state, loss or gradient is infinite or no number; the message names step, layer and remedy."""


@dataclass(slots=True, eq=False)
class Work:
    """A batch on its way."""

    batches: list[Batch]
    """Its micro-batches."""
    calls: list[Calls]
    """What the layers are called with for each of them."""
    hidden: list[torch.Tensor]
    """Hidden states of each at the present layer, [b, T, d]; behind the head, the loss's gradient by them."""
    step: int
    """Number of the optimizer step, which dropout depends on."""
    losses: list[float] = field(default_factory=list)
    """Loss of each, over the tokens of the whole pass."""
    apart: bool = False
    """Whether no layer may keep anything for its next call; where tokens are decoded, some keep their state."""
    whole: bool = False
    """Whether hidden states are all that goes on from its ids; not so where a cache holds earlier tokens."""
    asked: list[Asked] = field(default_factory=list)
    """Whether what was run so far drew random numbers."""


@dataclass(slots=True, eq=False)
class Passes:
    """Runs work through the layers."""

    skeleton: Skeleton
    """The model without weights."""
    body: Body
    """Its code around the layers."""
    head: Head
    """Its loss."""
    store: Store
    """Where layers and pieces of the head lie; pieces come after the layers."""
    by_row: Reader
    """Reads rows of the embedding."""
    pool: SlotPool
    """Buffers they take turns in."""
    boundaries: InMemory | Spilled
    """Keeps what goes into each layer."""
    prefix: Spilled
    """Keeps what comes out of the layers below the lowest trained one, where that is the same each time."""
    seed: int
    """Of all random numbers, dropout for one."""
    device: torch.device
    """Where layers are computed."""
    training: bool = True
    """Whether the model is in training mode: whether dropout is on, for one."""
    remembers: bool = True
    """Whether what comes out of the frozen layers at the bottom is kept; not so where buffers hold anything."""
    graph_up: bool = False
    """Whether trained layers have a graph on the way up too: where torch would choose other kernels without one."""
    visited: Callable[[str], None] = lambda place: None
    """Is told of each layer and piece of the head that is done with."""
    _hidden: Block = field(default_factory=Block)

    def open(self, batch: Batch, micro_batch: int, step: int) -> Work:
        """Cut a batch into micro-batches and run what comes before the layers."""
        rows = range(0, len(batch["input_ids"]), micro_batch)
        batches = [{name: value[at : at + micro_batch].to(self.device) for name, value in batch.items()} for at in rows]
        calls, asked = [], []
        for m, own in enumerate(batches):
            with self._drawn_from(step, -1, m) as drew:
                calls.append(self.body.open(_inputs(own)))
            asked.append(drew)
        hidden = self._hidden.tensors([call.hidden for call in calls])
        for own, call in zip(hidden, calls, strict=True):
            own.copy_(call.hidden)
            del call.hidden
        whole = not any(call.shared.boxes for call in calls)
        return Work(batches=batches, calls=calls, hidden=hidden, step=step, apart=True, whole=whole, asked=asked)

    def up(self, work: Work, *, keep: bool) -> None:
        """Run every layer without gradient; with `keep` what goes into those on the way back is kept."""
        n, lowest = len(self.skeleton.layers), self.skeleton.lowest_trained
        if keep:
            each = dict(enumerate(work.hidden))
            self.boundaries.reserve({(i, m): each[m] for i in range(lowest, n) for m in each})
        for i in range(self._skip_prefix(work), n):
            if i == lowest:
                self._remember_prefix(work)
            with self._layer(i, i + 1) as weights, torch.no_grad():
                for m in range(len(work.hidden)):
                    if keep and i >= lowest:
                        self.boundaries.put((i, m), work.hidden[m])
                    with torch.set_grad_enabled(self.graph_up and keep and i >= lowest):
                        hidden = work.hidden[m].detach().requires_grad_(torch.is_grad_enabled() and i > lowest)
                        out = self._run(work, i, m, weights, hidden).detach()
                    work.hidden[m].copy_(out)
                    work.calls[m].shared.note(i)
            _require_finite(work.hidden, f"what layer {i} returned", work.step)

    def _skip_prefix(self, work: Work) -> int:
        """Return the first layer to run: the lowest trained one where what comes below it has been seen before."""
        if not self._prefix_is_fixed(work) or not all(self._content(own) in self.prefix for own in work.batches):
            return 0
        for own, hidden in zip(work.batches, work.hidden, strict=True):
            hidden.copy_(self.prefix.look(self._content(own)))
        return self.skeleton.lowest_trained

    def _prefix_is_fixed(self, work: Work) -> bool:
        """Say whether what comes out below the lowest trained layer is the same each time, as far as was seen.

        What drew random numbers is another at each step, and is never remembered.
        """
        some = 0 < self.skeleton.lowest_trained < len(self.skeleton.layers)
        return some and work.whole and not any(asked.drew for asked in work.asked)

    def _remember_prefix(self, work: Work) -> None:
        if self.remembers and self._prefix_is_fixed(work):
            for own, hidden in zip(work.batches, work.hidden, strict=True):
                if self._content(own) not in self.prefix:
                    self.prefix.put(self._content(own), hidden)

    def _content(self, batch: Batch) -> str:
        """Return what tells a micro-batch from others, as far as hidden states depend on it."""
        digest = hashlib.sha256(f"{self.training} ".encode())
        for name, value in sorted(_inputs(batch).items()):
            digest.update(f"{name} {tuple(value.shape)}".encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def through_head(self, work: Work, counted: int) -> None:
        """Note the losses, and put their gradient by the last hidden states in place of those."""
        self._draw_behind_layers(work)
        work.losses = self.head.loss_and_gradient(work.batches, work.hidden, counted, self._piece)
        _require_finite([torch.tensor(work.losses)], "the loss", work.step)

    def position_losses(self, work: Work) -> list[torch.Tensor]:
        """Return the loss of every position of each micro-batch in nats, [b, T - 1], 0 where there is no label."""
        self._draw_behind_layers(work)
        return self.head.losses(work.batches, work.hidden, self._piece)

    def likeliest(self, work: Work) -> torch.Tensor:
        """Return the token with the largest logit after the last position of each sample, [b], of one micro-batch."""
        self._draw_behind_layers(work)
        return self.head.likeliest(work.batches[0], work.hidden[0][..., -1:, :], self._piece)

    def _draw_behind_layers(self, work: Work) -> None:
        n = len(self.skeleton.layers)
        self.head.drawing = lambda m: self._drawn_from(work.step, n, m)

    def down(self, work: Work) -> dict[int, torch.Tensor]:
        """Differentiate layer by layer; return the gradient of each adapter by the id of its parameter."""
        adapters = [*self.skeleton.adapters().values()]
        room = dict(zip(map(id, adapters), Block().tensors(adapters), strict=True))
        seen: set[int] = set()
        n, lowest = len(self.skeleton.layers), self.skeleton.lowest_trained
        for i in range(n - 1, lowest - 1, -1):
            own = [p for p in self.skeleton.layers[i].parameters() if p.requires_grad]
            with self._layer(i, i - 1 if i > lowest else None) as weights:
                for m in range(len(work.batches)):
                    found = self._differentiate(work, i, m, weights, own)
                    if i > lowest:
                        work.hidden[m].copy_(found.pop(0))
                    _accumulate(room, seen, own, found)
            _require_finite([room[id(p)] for p in own if id(p) in seen], f"a gradient of layer {i}", work.step)
        return {key: gradient if key in seen else gradient.zero_() for key, gradient in room.items()}

    def _differentiate(
        self,
        work: Work,
        i: int,
        m: int,
        weights: Mapping[str, torch.Tensor],
        own: Sequence[torch.Tensor],
    ) -> list[torch.Tensor | None]:
        """Return the gradient by what goes into a layer, if a layer below needs it, and by its adapters."""
        wanted_below = i > self.skeleton.lowest_trained
        hidden = self.boundaries.take((i, m)).detach().requires_grad_(wanted_below)
        wanted = [hidden, *own] if wanted_below else [*own]
        shared = work.calls[m].shared
        lent = shared.lend(i, self.skeleton.lowest_trained)
        with torch.enable_grad():
            out = self._run(work, i, m, weights, hidden)
        left, by_left = shared.left(i)
        outputs, upstream = [out, *left], [work.hidden[m], *by_left]
        found = list(torch.autograd.grad(outputs, [*wanted, *lent], upstream, allow_unused=True))
        shared.take_back(found[len(wanted) :])
        return found[: len(wanted)]

    def _run(
        self, work: Work, i: int, m: int, weights: Mapping[str, torch.Tensor], hidden: torch.Tensor
    ) -> torch.Tensor:
        modules = [*self.skeleton.layers[i].modules()] if work.apart else []
        with self._drawn_from(work.step, i, m) as drew, as_found(modules):
            out = run_layer(self.skeleton.layers[i], weights, hidden, work.calls[m].arguments[i])
        work.asked.append(drew)
        return out

    @contextmanager
    def _layer(self, i: int, after: int | None) -> Iterator[dict[str, torch.Tensor]]:
        """Hold a layer, have the next one read, and yield its weights."""
        with self._held(i, after) as views:
            yield weights_of(self.skeleton.layers[i], views)

    @contextmanager
    def _piece(self, i: int, after: int | None) -> Iterator[dict[str, torch.Tensor]]:
        """Hold a piece of the head; after the last use of the head the top layer is wanted again."""
        first = len(self.skeleton.layers)
        with self._held(
            first + i, first - 1 if after is None and i == 0 else None if after is None else first + after
        ) as views:
            yield views

    @contextmanager
    def _held(self, i: int, after: int | None) -> Iterator[dict[str, torch.Tensor]]:
        with self.pool.hold(i) as slot:
            if after is not None:
                self.pool.prefetch(after)
            yield self.store.views(i, slot.memory)
            if self.device.type == "cuda":
                # Kernels run behind the program; the buffer may be refilled only when the last one has read it.
                torch.cuda.synchronize(self.device)
        n = len(self.skeleton.layers)
        self.visited(f"layer {i}" if i < n else f"head {i - n}")

    def _drawn_from(self, step: int, layer: int, micro_batch: int) -> AbstractContextManager[Asked]:
        """Draw the same each time a layer meets a micro-batch of a step, whichever way it is passed."""
        return drawn_from(self.seed, step, layer, micro_batch, device=self.device)


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def _accumulate(
    room: Mapping[int, torch.Tensor],
    seen: set[int],
    own: Sequence[torch.Tensor],
    found: Sequence[torch.Tensor | None],
) -> None:
    for parameter, gradient in zip(own, found, strict=True):
        if gradient is not None and id(parameter) in seen:
            room[id(parameter)].add_(gradient)
        elif gradient is not None:
            room[id(parameter)].copy_(gradient)
            seen.add(id(parameter))


def _require_finite(tensors: Sequence[torch.Tensor], what: str, step: int) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise NotFinite(
            f"step {step}: {what} is not finite; compute in bfloat16 or float32 instead of float16, or lower the rate"
        )
