"""What training a checkpoint takes, worked out before anything is allocated: memory, bytes, seconds, and the choice of
micro-batch, buffers and place of the kept hidden states that fits a budget.

The memory follows from the headers and from one layer run without weights (`footprint`). The seconds are a roofline,
max(bytes / bandwidth, FLOPs / rate), with both rates measured on this machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from labkit.base.units import MIB, format_bytes
from labkit.offload.footprint import Footprint

ADAM_BYTES = 16
"""Bytes per adapter parameter in float32: value, gradient and AdamW's two moments."""
SLACK_BYTES = 88 * MIB
"""Memory that no formula names: allocators, threads, the model's modules, kernels loaded on first use. The same
training peaked anywhere between 40 MiB below and 4 MiB above a plan with 64 MiB."""
ALLOCATOR = 3.0
"""Memory an allocator holds for a layer at work, over what is alive: it keeps gaps. Measured with glibc: 1.3 to 3.5."""
FEWEST_SLOTS = 2
"""Buffers below which nothing can be read while a layer is used."""
MOST_TOKENS = 512
"""Tokens of a micro-batch beyond which matrix products on this kind of machine get no faster."""
HALF_RATE_TOKENS = 48
"""Tokens of a micro-batch at which they reach half of their rate: 16 tokens took a tenth of the time of 512 here."""


class TooSmall(ValueError):
    """A budget below what the job needs at its leanest; the message has the smallest one that works."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A model and its adapters in the numbers that a plan needs."""

    n_layers: int
    """Decoder layers."""
    lowest_trained: int
    """Lowest layer with an adapter; `n_layers` without any."""
    slot_bytes: int
    """Bytes of a buffer: the largest layer as it is held."""
    layer_bytes: int
    """Bytes of all layers on disk."""
    head_bytes: int
    """Bytes of the output matrix on disk."""
    n_pieces: int
    """Pieces the output matrix is read in, each no larger than a buffer."""
    kept_bytes: int
    """Bytes of what lies outside the layers and is always in memory."""
    staging_bytes: int
    """Bytes that reading takes besides the buffers: to convert a tensor, or to align a direct read."""
    layer_parameters: int
    """Parameters of all layers."""
    head_parameters: int
    """Parameters of the output matrix."""
    adapter_parameters: int
    """Trainable parameters."""
    unit_bytes: tuple[int, ...] = ()
    """Bytes on disk of each layer and, after them, each piece of the head; empty where all are alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """How fast this machine reads and computes, measured."""

    bytes_per_second: float
    """Weights from the disk, with a cold cache."""
    flops_per_second: float
    """Matrix products of a micro-batch in the type that is computed in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a step will be run, and what it takes."""

    memory_bytes: int
    """The budget."""
    batch_size: int
    """Samples of a step."""
    seq_len: int
    """Tokens of a sample."""
    micro_batch: int
    """Samples that go through a layer together."""
    slots: int
    """Buffers that layers take turns in."""
    spill: bool
    """Whether what goes into each layer is kept in a file instead of in memory."""
    head_pieces: int
    """Pieces that the output matrix is read in."""
    parts: Mapping[str, int]
    """Bytes of the peak by what they are for."""
    bytes_read: int
    """Bytes of layers and head read in a step after the first."""
    first_bytes_read: int
    """The same in the first step, when nothing is there yet."""
    spilled_bytes: int
    """Bytes of hidden states that go into the file, and come back, in a step."""
    flops: float
    """Floating-point operations of a step."""
    rates: Rates
    """What the seconds are computed with."""

    @property
    def peak_bytes(self) -> int:
        """Largest memory of the process that no file backs."""
        return sum(self.parts.values())

    @property
    def io_seconds(self) -> float:
        """Time to read the weights, and to write and read hidden states in a file."""
        return (self.bytes_read + 2 * self.spilled_bytes) / self.rates.bytes_per_second

    @property
    def compute_seconds(self) -> float:
        """Time to compute: the rate was measured with as many tokens as the step has, and small products are slower."""
        measured, used = (min(MOST_TOKENS, tokens) for tokens in (self.tokens, self.micro_batch * self.seq_len))
        slower = (1 + HALF_RATE_TOKENS / used) / (1 + HALF_RATE_TOKENS / measured)
        return self.flops / self.rates.flops_per_second * slower

    @property
    def seconds(self) -> float:
        """Time of a step on the roofline: reading and computing overlap."""
        return max(self.io_seconds, self.compute_seconds)

    @property
    def tokens(self) -> int:
        """Tokens of a step, which is one pass over the weights."""
        return self.batch_size * self.seq_len

    @property
    def crossover_tokens(self) -> float:
        """Tokens per pass from which on computing takes longer than reading."""
        return self.io_seconds / (self.compute_seconds / self.tokens)

    def describe(self) -> str:
        """Say in a few lines what will happen."""
        kept = "a file" if self.spill else "memory"
        return (
            f"{self.batch_size} samples of {self.seq_len} tokens in micro-batches of {self.micro_batch}, "
            f"{self.slots} buffers, hidden states kept in {kept}\n"
            f"  {format_bytes(self.peak_bytes)} of {format_bytes(self.memory_bytes)}: {_listed(self.parts)}\n"
            f"  {format_bytes(self.bytes_read)} read and {self.flops / 1e12:.2f} TFLOP a step, about "
            f"{self.seconds:.1f} s, {self._balance()}"
        )

    def _balance(self) -> str:
        if not self.io_seconds:
            return "all of it computing: every layer has a buffer and stays in memory after the first step"
        bound = "reading" if self.io_seconds > self.compute_seconds else "computing"
        return f"bound by {bound}; both take equally long at {self.crossover_tokens:,.0f} tokens"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is asked of a model."""

    shape: Shape
    """The model and its adapters."""
    footprint: Footprint
    """Memory that samples of this length take."""
    batch_size: int
    """Samples of a step."""
    seq_len: int
    """Tokens of a sample."""
    base_bytes: int
    """What the process holds already."""
    rates: Rates
    """What the seconds are computed with."""


def choose(request: Request, memory_bytes: int, **made: int | bool | None) -> Plan:
    """Choose the fastest plan within a budget; of equally fast ones that which moves least.

    Memory can hold hidden states, larger micro-batches or more buffers, each of which saves two loads of a layer in
    every step; what is scarce decides.

    Args:
        request: what is asked.
        memory_bytes: the budget.
        made: choices made by hand: micro_batch, slots, spill; None leaves one open.

    Raises:
        TooSmall: nothing fits; the message has the smallest budget that works.
    """
    fixed = {name: value for name, value in made.items() if value is not None}
    found = [plan for plan in _candidates(request, memory_bytes, fixed) if plan.peak_bytes <= memory_bytes]
    if found:
        return min(found, key=lambda plan: (plan.seconds, plan.io_seconds, -plan.micro_batch))
    leanest = _plan(request, memory_bytes, **{"micro_batch": 1, "slots": FEWEST_SLOTS, "spill": True} | fixed)
    raise TooSmall(
        f"{request.batch_size} samples of {request.seq_len} tokens need at least {format_bytes(leanest.peak_bytes)} "
        f"({_listed(leanest.parts)}), and the budget is {format_bytes(memory_bytes)}; raise it, shorten the samples "
        "or take fewer"
    )


def _candidates(request: Request, memory_bytes: int, fixed: Mapping[str, int | bool]) -> Iterator[Plan]:
    """Yield a plan for each place of the hidden states and each size of micro-batch, with as many buffers as fit."""
    for spill in (False, True):
        for micro_batch in _micro_batches(request):
            choice = {"micro_batch": micro_batch, "slots": FEWEST_SLOTS, "spill": spill} | fixed
            choice["micro_batch"] = min(choice["micro_batch"], request.batch_size)
            plan = _plan(request, memory_bytes, **choice)
            yield plan if "slots" in fixed else _with_spare_slots(request, plan, choice)


def _with_spare_slots(request: Request, plan: Plan, choice: Mapping[str, int | bool]) -> Plan:
    spare = max(plan.memory_bytes - plan.peak_bytes, 0) // request.shape.slot_bytes
    slots = min(plan.slots + spare, request.shape.n_layers + request.shape.n_pieces)
    return _plan(request, plan.memory_bytes, **{**choice, "slots": slots})


def _micro_batches(request: Request) -> Iterator[int]:
    """Yield sizes to try, largest first: the useful one, then powers of two."""
    size = min(request.batch_size, max(1, MOST_TOKENS // request.seq_len))
    yield size
    yield from (2**k for k in range(size.bit_length(), -1, -1) if 2**k < size)


def _plan(request: Request, memory_bytes: int, micro_batch: int, slots: int, spill: bool) -> Plan:
    first, later = _bytes_read(request.shape, slots)
    return Plan(
        memory_bytes=memory_bytes,
        batch_size=request.batch_size,
        seq_len=request.seq_len,
        micro_batch=micro_batch,
        slots=slots,
        spill=spill,
        head_pieces=request.shape.n_pieces,
        parts=_parts(request, micro_batch, slots, spill),
        bytes_read=later,
        first_bytes_read=first,
        spilled_bytes=_n_kept(request) * request.batch_size * request.footprint.hidden if spill else 0,
        flops=_flops(request),
        rates=request.rates,
    )


def _parts(request: Request, micro_batch: int, slots: int, spill: bool) -> dict[str, int]:
    shape, footprint = request.shape, request.footprint
    all_hidden = request.batch_size * footprint.hidden
    n_kept = 0 if spill else _n_kept(request)
    # The gradient takes the hidden states' place; by pieces it is summed up in float32 before.
    n_at_head = 1 if shape.n_pieces == 1 else 3
    return {
        "process": request.base_bytes + SLACK_BYTES,
        "buffers": slots * shape.slot_bytes + shape.staging_bytes,
        "outside the layers": shape.kept_bytes,
        "adapters": shape.adapter_parameters * ADAM_BYTES,
        "hidden states": n_at_head * all_hidden + request.batch_size * footprint.arguments,
        "kept for the way back": n_kept * all_hidden,
        "at work": int(ALLOCATOR * max(footprint.layer(micro_batch), footprint.head(micro_batch))),
    }


def _n_kept(request: Request) -> int:
    return request.shape.n_layers - request.shape.lowest_trained


def _bytes_read(shape: Shape, slots: int) -> tuple[int, int]:
    """Return the bytes of the first step and of a later one, by walking the schedule with that many buffers."""
    walk = schedule(shape.n_layers, shape.lowest_trained, shape.n_pieces)
    held: list[int] = []
    per_step = []
    for _ in range(2):
        n_bytes = 0.0
        for unit in walk:
            if unit in held:
                held.remove(unit)
            else:
                n_bytes += _unit_bytes(shape, unit)
                del held[: max(0, len(held) - slots + 1)]
            held.append(unit)
        per_step.append(round(n_bytes))
    return per_step[0], per_step[1]


def schedule(n_layers: int, lowest_trained: int, n_pieces: int) -> list[int]:
    """Return the order in which a step visits layers and, numbered after them, pieces of the head.

    It goes up through the layers and the pieces, down through the pieces if there are several, and down to the lowest
    layer with an adapter.
    """
    pieces = [*range(n_layers, n_layers + n_pieces)]
    again = pieces[::-1] if n_pieces > 1 else []
    return [*range(n_layers), *pieces, *again, *range(n_layers - 1, lowest_trained - 1, -1)]


def _unit_bytes(shape: Shape, unit: int) -> float:
    if shape.unit_bytes:
        return shape.unit_bytes[unit]
    in_layers = unit < shape.n_layers
    return shape.layer_bytes / shape.n_layers if in_layers else shape.head_bytes / shape.n_pieces


def _flops(request: Request) -> float:
    """Count 2 FLOPs per parameter and token up, and on the way back 2 to recompute and 2 for the hidden states."""
    shape = request.shape
    share_down = (shape.n_layers - shape.lowest_trained) / shape.n_layers
    layers = shape.layer_parameters * (2 + 4 * share_down)
    head = shape.head_parameters * (4 if shape.n_pieces == 1 else 6)
    return request.batch_size * request.seq_len * (layers + head)


def _listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {format_bytes(n)}" for name, n in parts.items() if n)
