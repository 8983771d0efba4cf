"""Put the parts of a streamed model together, and say in numbers what a plan needs to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from labkit import device as machine
from labkit.offload import adapting
from labkit.offload.body import Body
from labkit.offload.boundaries import InMemory, Spilled
from labkit.offload.draws import left_alone
from labkit.offload.footprint import Footprint, measure
from labkit.offload.head import Head, Piece, pieces
from labkit.offload.headers import CannotStream, Checkpoint, Entry
from labkit.offload.memory import anonymous_bytes
from labkit.offload.passes import Passes
from labkit.offload.planner import MOST_TOKENS, Rates, Request, Shape
from labkit.offload.readers import REQUEST, Calibration, Reader, Way, calibrate, page_aligned
from labkit.offload.skeleton import Skeleton, build_skeleton
from labkit.offload.slots import SlotPool
from labkit.offload.store import Layout, Store, held_dtype, lay_out, read_rows, read_tensor

_GEMM_COLUMNS = 2048
_GEMM_REPEATS = 3


@dataclass(slots=True, eq=False)
class Parts:
    """A checkpoint taken apart, no weight of it read."""

    checkpoint: Checkpoint
    """Where the weights lie."""
    skeleton: Skeleton
    """The model without them."""
    layouts: list[Layout]
    """How each layer, and after them each piece of the head, stands in a buffer."""
    pieces: list[Piece]
    """The head's pieces."""
    base_bytes: int
    """What the process held before."""

    @property
    def slot_bytes(self) -> int:
        """Bytes of a buffer."""
        return max(layout.n_bytes for layout in self.layouts)


def take_apart(
    checkpoint: Checkpoint, lora: LoraConfig | None, dtype: torch.dtype | None, device: torch.device, seed: int | None
) -> Parts:
    """Build the model without weights and lay out its layers; its new adapters are drawn, unless `seed` is None.

    Raises:
        CannotStream: the model cannot be streamed.
    """
    base = anonymous_bytes() if device.type == "cpu" else torch.cuda.memory_allocated(device)
    with left_alone(device):
        skeleton = build_skeleton(checkpoint, lora=lora, dtype=dtype, device=device, seed=seed)
    held = skeleton.model.dtype
    layouts = [lay_out(source, held) for source in skeleton.sources]
    head = _by_rows(skeleton, skeleton.head)
    _by_rows(skeleton, skeleton.table)
    cut = pieces(head, max(layout.n_bytes for layout in layouts), held_dtype(head, held).itemsize)
    layouts += [lay_out({"weight": piece.entry}, held) for piece in cut]
    return Parts(checkpoint, skeleton, layouts, cut, base)


def _by_rows(skeleton: Skeleton, name: str) -> Entry:
    """Return where a matrix lies that is read by rows, for which it must be one tensor."""
    source = skeleton.rest[name]
    if not isinstance(source, Entry):
        raise CannotStream(f"the checkpoint holds {name} in {len(source.parts)} tensors, and it is read by rows of one")
    return source


def shape_of(parts: Parts, way: Way) -> Shape:
    """Say in numbers what a plan needs to know of a model."""
    skeleton, held = parts.skeleton, parts.skeleton.model.dtype
    layers = [source for layer in skeleton.sources for source in layer.values()]
    head = skeleton.rest[skeleton.head]
    kept = [skeleton.rest[name] for name in (*skeleton.kept, *skeleton.beside_head)]
    read = [part for source in (*layers, head) for part in source.parts]
    converted = [part.n_bytes for part in read if part.dtype != held_dtype(part, held)]
    return Shape(
        n_layers=len(skeleton.layers),
        lowest_trained=skeleton.lowest_trained,
        slot_bytes=parts.slot_bytes,
        layer_bytes=sum(source.n_bytes for source in layers),
        head_bytes=head.n_bytes,
        n_pieces=len(parts.pieces),
        kept_bytes=sum(source.n_values * held_dtype(source.parts[0], held).itemsize for source in kept),
        staging_bytes=max(converted, default=0) + (REQUEST if way == "direct" else 0),
        layer_parameters=sum(source.n_values for source in layers),
        head_parameters=head.n_values,
        adapter_parameters=sum(p.numel() for p in skeleton.adapters().values()),
        unit_bytes=tuple(sum(entry.n_bytes for entry in layout.entries.values()) for layout in parts.layouts),
    )


def request_for(parts: Parts, way: Way, batch_size: int, seq_len: int, rates: Rates) -> Request:
    """Say what a step of a model takes, for a plan to be chosen."""
    return Request(
        shape=shape_of(parts, way),
        footprint=footprint_of(parts, seq_len),
        batch_size=batch_size,
        seq_len=seq_len,
        base_bytes=parts.base_bytes,
        rates=rates,
    )


def footprint_of(parts: Parts, seq_len: int) -> Footprint:
    """Count the memory that samples of a length take."""
    return measure(parts.skeleton, seq_len, len(parts.pieces))


def try_reading(parts: Parts) -> Calibration:
    """Try which way of reading a checkpoint is faster."""
    return calibrate(sorted({entry.file for entry in parts.checkpoint.entries.values()}))


def rates_of(parts: Parts, trial: Calibration, way: Way, tokens: int) -> Rates:
    """Return how fast this machine reads, and how fast it multiplies with so many tokens in a micro-batch."""
    product = machine.gemm_flops(
        parts.skeleton.model.dtype,
        rows=max(1, min(tokens, MOST_TOKENS)),
        cols=_GEMM_COLUMNS,
        repeats=_GEMM_REPEATS,
        device=parts.skeleton.device.type,
    )
    rate = trial.bytes_per_second.get(way) or max(trial.bytes_per_second.values())
    return Rates(bytes_per_second=rate, flops_per_second=product.median)


def build_passes(parts: Parts, way: Way, seed: int, prefix: Spilled) -> Passes:
    """Read what is always in memory, and put together what runs a batch; it has no buffer yet."""
    skeleton, held, device = parts.skeleton, parts.skeleton.model.dtype, parts.skeleton.device
    by_row = Reader()
    always = {
        name: read_tensor(by_row, skeleton.rest[name], held).to(device)
        for name in (*skeleton.kept, *skeleton.beside_head)
    }
    small = {name: always.pop(name) for name in skeleton.beside_head}
    body = Body(skeleton.model, skeleton.layers, _rows_of(by_row, skeleton.rest[skeleton.table], held), always)
    store = Store(Reader(way), parts.layouts)
    return Passes(
        skeleton=skeleton,
        body=body,
        head=Head(body, skeleton.head, parts.pieces, small),
        store=store,
        by_row=by_row,
        pool=SlotPool(_filling(store, device), []),
        boundaries=InMemory(),
        prefix=prefix,
        seed=seed,
        device=device,
    )


def start_magnitudes(parts: Parts) -> None:
    """Read the maps that DoRA adapts, one at a time, and let its new magnitudes start from them.

    Raises:
        ReadError: as `Reader.read`.
    """
    skeleton, reader = parts.skeleton, Reader()
    for layer, sources in zip(skeleton.layers, skeleton.sources, strict=True):
        for name, module in layer.named_modules():
            if isinstance(module, LoraLayer) and len(module.lora_magnitude_vector):
                weight = read_tensor(reader, sources[f"{name}.weight"], skeleton.model.dtype)
                adapting.start_magnitudes(module, weight.to(skeleton.device))
    reader.close()


def _rows_of(
    reader: Reader, table: Entry, dtype: torch.dtype
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    def rows(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        used, places = torch.unique(ids, return_inverse=True)
        return read_rows(reader, table, used.cpu(), dtype).to(ids.device), places

    return rows


def _filling(store: Store, device: torch.device) -> Callable[[int, torch.Tensor], None]:
    """Return what fills a buffer: the disk straight into memory, or through a pinned page-locked one to a device."""
    if device.type == "cpu":
        return store.fill
    pinned = torch.empty(store.buffer_bytes, dtype=torch.uint8, pin_memory=True)
    stream = torch.cuda.Stream(device)

    def fill(unit: int, memory: torch.Tensor) -> None:
        store.fill(unit, pinned)
        with torch.cuda.stream(stream):
            memory.copy_(pinned, non_blocking=True)
        # The pinned buffer is refilled next, and whoever waits for the layer may use it at once.
        stream.synchronize()

    return fill


def new_buffer(parts: Parts) -> torch.Tensor:
    """Return memory for one layer on the model's device, uint8."""
    if parts.skeleton.device.type == "cpu":
        return page_aligned(parts.slot_bytes)
    return torch.empty(parts.slot_bytes, dtype=torch.uint8, device=parts.skeleton.device)


def keeper(spill: bool, folder: Path) -> InMemory | Spilled:
    """Return what keeps hidden states for the way back."""
    return Spilled(folder) if spill else InMemory()
