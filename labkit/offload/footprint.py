"""How much memory one layer and the head take at work, counted without allocating any.

A layer is run forward and backward on tensors that have shapes but no memory; every storage that comes to life and goes
is counted, so the peak is that of the model's own code with its own attention and its own adapters.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from labkit.offload.body import Body, Calls, run_layer
from labkit.offload.grouped import GroupedShapes
from labkit.offload.head import token_loss
from labkit.offload.headers import CannotStream
from labkit.offload.skeleton import Skeleton
from labkit.offload.store import held_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Bytes by the number of samples in a micro-batch: a constant, and so much for each."""

    fixed: float
    """Bytes whatever the number of samples."""
    per_sample: float
    """Bytes of each sample."""

    def __call__(self, samples: int) -> int:
        """Return the bytes for a number of samples."""
        return int(self.fixed + samples * self.per_sample)


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Memory that samples of one length take."""

    hidden: int
    """Bytes of one sample's hidden states."""
    arguments: int
    """Bytes of what the layers of one sample are called with: masks, positions, rotations."""
    layer: Line
    """A layer's recomputation and gradient, or its forward pass in a model without adapters."""
    head: Line
    """Logits of one piece of the vocabulary, the loss, and the gradient by the hidden states."""
    learned_masks: bool = False
    """Whether a layer's attention has a mask with a gradient, which makes torch choose another kernel."""


def measure(skeleton: Skeleton, seq_len: int, n_pieces: int = 1) -> Footprint:
    """Count what samples take.

    Args:
        skeleton: the model without weights.
        seq_len: tokens of a sample.
        n_pieces: pieces that the output matrix is read in.

    Raises:
        CannotStream: the parts of the model do not run by themselves.
    """
    try:
        return _measured(skeleton, seq_len, n_pieces)
    except CannotStream:
        raise
    except Exception as error:
        name = type(skeleton.model).__name__
        raise CannotStream(f"the parts of {name} do not run by themselves: {error}") from error


def _measured(skeleton: Skeleton, seq_len: int, n_pieces: int) -> Footprint:
    body = _body_of_ones(skeleton)
    with body.at_rest(), LearnedMasks() as masks:
        calls = [body.open(_padded(samples, seq_len)) for samples in (1, 2)]
        for call in calls:
            _fill_boxes(skeleton, call)
        hidden = calls[0].hidden
        layer = _above([_line(_peak_of(skeleton, i, calls)) for i in _one_of_each_kind(skeleton, calls[0])])
        return Footprint(
            hidden=hidden.numel() * hidden.element_size(),
            arguments=_storage_bytes(calls[0].arguments) + _shared_bytes(calls[0]),
            layer=layer,
            head=_line(lambda samples: _head_peak(skeleton, body, calls[samples - 1].hidden, n_pieces)),
            learned_masks=masks.seen,
        )


def _fill_boxes(skeleton: Skeleton, calls: Calls) -> None:
    """Run the layers one after the other, to see what each leaves for later ones."""
    if not calls.shared.boxes:
        return
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, GroupedShapes(), torch.no_grad():
        hidden = _empty(calls.hidden)
        for i, layer in enumerate(skeleton.layers):
            arguments = tree_map(lambda leaf: _faked(fake, leaf), calls.arguments[i])
            weights = {name: _empty(p) for name, p in layer.named_parameters(remove_duplicate=False)}
            hidden = run_layer(layer, weights, hidden, arguments)
            calls.shared.note(i)


def _shared_bytes(calls: Calls) -> int:
    """Return the bytes of what layers leave for later ones, and of as much gradient."""
    return 2 * sum(v.numel() * v.element_size() for values in calls.shared.values.values() for v in values)


def _line(peak: Callable[[int], int]) -> Line:
    one, two = peak(1), peak(2)
    return Line(fixed=2 * one - two, per_sample=two - one)


def _above(lines: list[Line]) -> Line:
    """Return a line that none of several lies above."""
    return Line(fixed=max(line.fixed for line in lines), per_sample=max(line.per_sample for line in lines))


def _one_of_each_kind(skeleton: Skeleton, calls: Calls) -> list[int]:
    """Return one layer of each kind: some models mix kinds of attention, and not every layer has adapters."""
    kinds: dict[Any, int] = {}
    for i, layer in enumerate(skeleton.layers):
        own = tuple((name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters())
        called = tuple((tuple(t.shape), t.dtype) for t in tree_leaves(calls.arguments[i]) if torch.is_tensor(t))
        kinds.setdefault((own, called), i)
    return [*kinds.values()]


def _peak_of(skeleton: Skeleton, layer: int, calls: list[Calls]) -> Callable[[int], int]:
    return lambda samples: _layer_peak(skeleton, layer, calls[samples - 1])


def _layer_peak(skeleton: Skeleton, i: int, calls: Calls) -> int:
    trained, layer = skeleton.lowest_trained < len(skeleton.layers), skeleton.layers[i]
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, GroupedShapes():
        arguments = tree_map(lambda leaf: _faked(fake, leaf), calls.arguments[i])
        named = layer.named_parameters(remove_duplicate=False)
        weights = {name: torch.nn.Parameter(_empty(p), requires_grad=p.requires_grad) for name, p in named}
        own = [weight for weight in weights.values() if weight.requires_grad]
        hidden = _empty(calls.hidden).requires_grad_(trained)
        upstream, lent = torch.empty_like(hidden), calls.shared.lend_empty(i, trained)
        with torch.set_grad_enabled(trained), LiveBytes() as live:
            out = run_layer(layer, weights, hidden, arguments)
            _require_type(layer, out, hidden)
            if trained:
                torch.autograd.grad(out, [hidden, *own, *lent], upstream, allow_unused=True)
            del out
        return live.peak


def _require_type(layer: torch.nn.Module, out: torch.Tensor, hidden: torch.Tensor) -> None:
    """Raise unless a layer returns hidden states in the type that it is given: they are kept in one between layers.

    Raises:
        CannotStream: it keeps them in a longer one, as Mamba does where it computes in bfloat16.
    """
    if out.dtype != hidden.dtype:
        given, returned = (str(one.dtype).removeprefix("torch.") for one in (hidden, out))
        raise CannotStream(
            f"{type(layer).__name__} is given hidden states in {given} and returns them in {returned}, and between "
            "layers they are kept in one type; stream it with dtype=torch.float32"
        )


def _head_peak(skeleton: Skeleton, body: Body, hidden: torch.Tensor, n_pieces: int) -> int:
    vocabulary, width = skeleton.rest[skeleton.head].shape
    dtype, n_rows = skeleton.model.dtype, -(-vocabulary // n_pieces)
    with FakeTensorMode(allow_non_fake_inputs=True):
        head = {skeleton.head: torch.empty(n_rows, width, dtype=dtype)}
        head |= {name: torch.empty(n_rows, dtype=dtype) for name in skeleton.beside_head}
        labels = torch.empty(hidden.shape[-3:-1], dtype=torch.long)
        leaf = _empty(hidden).requires_grad_()
        with torch.enable_grad(), LiveBytes() as live:
            loss = token_loss(body.logits({}, leaf, head), labels, 1)
            torch.autograd.grad(loss, leaf)
        return live.peak


def _empty(like: torch.Tensor) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype).requires_grad_(like.requires_grad)


def _faked(fake: FakeTensorMode, leaf: Any) -> Any:
    return fake.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf


def _storage_bytes(tree: Any) -> int:
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _body_of_ones(skeleton: Skeleton) -> Body:
    """Return the code around the layers with ones for weights: shapes are asked of it, and what depends on what."""
    dtype = skeleton.model.dtype
    sources = {name: skeleton.rest[name] for name in skeleton.kept}
    kept = {name: torch.ones(own.shape, dtype=held_dtype(own.parts[0], dtype)) for name, own in sources.items()}
    width = skeleton.rest[skeleton.table].shape[1]
    return Body(
        skeleton.model,
        skeleton.layers,
        lambda ids: (torch.zeros(1, width, dtype=dtype), torch.zeros_like(ids)),
        kept,
    )


def _padded(samples: int, seq_len: int) -> dict[str, torch.Tensor]:
    """Return samples with padding: without any, models leave out masks."""
    mask = torch.ones(samples, seq_len, dtype=torch.long)
    mask[:, 0] = 0
    return {"input_ids": torch.zeros_like(mask), "attention_mask": mask}


class LearnedMasks(TorchFunctionMode):
    """Sees whether attention is called with a mask that has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at a call of attention and let it through."""
        if function is torch.nn.functional.scaled_dot_product_attention:
            mask = (kwargs or {}).get("attn_mask", args[3] if len(args) > 3 else None)
            self.seen |= mask is not None and mask.requires_grad
        return function(*args, **(kwargs or {}))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made within the block that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation and count what it returns, views of what was there before aside."""
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._known.add(tensor.untyped_storage()._cdata)
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += n_bytes
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, n_bytes)

    def _forget(self, key: int, n_bytes: int) -> None:
        self._known.discard(key)
        self.now -= n_bytes
