"""Quantize a rung's weights with torchao and ask three things: do the bytes shrink, do the times, do the answers hold?

Times are those of eager PyTorch. Where no kernel multiplies quantized weights as they lie, they are unpacked at every
step, and a model of half the bytes decodes more slowly: a measured time, not a count of bytes, says what is gained.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedModel

from labkit.base.units import GIB
from labkit.cell import cell, environment
from labkit.decoding.compare import ratio
from labkit.decoding.decode import TIMES, VERSIONS, measure_decode
from labkit.decoding.ladder import Rung, build_rung

WEIGHTS = ("int8", "int4")
"""Quantized types, besides a rung's own."""
GROUP_SIZES = (128, 64, 32)
"""Weights of a row that may share one int4 scale; a model gets the largest that divides all its rows."""
_AGREEMENT_TOKENS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedRung:
    """A rung with its linear maps in another weight type."""

    rung: Rung
    """The rung; its type stays that of activations, norms and embeddings."""
    weights: str
    """`int8` (one scale a row), `int4` (one scale a group, see `GROUP_SIZES`), or the rung's own type as baseline."""


class Unsupported(RuntimeError):
    """This machine or this version of torchao cannot multiply by weights of that type."""


@cell(
    "inertia.quantized",
    version=1,
    packages=("transformers", "torchao"),
    timing=(*TIMES, *VERSIONS),
    timed=True,
    onednn=environment.WITHOUT_AMX,
)
def measure_quantized(spec: QuantizedRung) -> dict[str, Any]:
    """Quantize a rung, hold its logits against those of the rung as it was, and time its decoding.

    Returns:
        plain JSON: `supported`; if not, `why`. Otherwise the counts and samples of `DecodeTiming`, `weight_bytes` held,
        `bytes_per_token` read, and `agreement` as `quantize_and_compare` returns it, over random tokens. Random
        weights leave the most likely token to chance, so that share says less than that of a pretrained model.

    Raises:
        TooLarge, ValueError: as `ladder.build_rung`, or an unknown weight type.
    """
    rung, plain = spec.rung, spec.weights == spec.rung.dtype
    if not plain and spec.weights not in WEIGHTS:
        raise ValueError(f"weights is {spec.weights!r}; write {rung.dtype!r}, {' or '.join(map(repr, WEIGHTS))}")
    gc.collect()
    model = build_rung(rung)
    head = {"rung": dataclasses.asdict(rung), "name": rung.name, "weights": spec.weights}
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    try:
        tokens = _random_tokens(model, rung.seed)
        agreement = quantize_and_compare(model, tokens, "" if plain else spec.weights, text="random tokens")
    except Unsupported as error:
        return head | {"supported": False, "why": str(error)}
    counts = {"prompt_tokens": rung.prompt_tokens, "new_tokens": rung.new_tokens}
    timing = measure_decode(model, repeats=rung.repeats, warmup=rung.warmup, seed=rung.seed, **counts).as_dict()
    # Quantizing parts a shared matrix in two; the model still has the parameters it had.
    timing["conditions"] |= {"weights": spec.weights, "parameters": n_parameters}
    sizes = {name: timing["conditions"][name] for name in ("parameters", "weight_bytes", "bytes_per_token", "n_layers")}
    return head | {"supported": True, "why": "", "agreement": agreement} | sizes | timing


def quantize_and_compare(model: PreTrainedModel, tokens: torch.Tensor, weights: str, *, text: str) -> dict[str, Any]:
    """Quantize a model in place and hold its logits against those it had.

    Args:
        model: any causal language model.
        tokens: [1, T] what it reads.
        weights: one of `WEIGHTS`; empty changes nothing and shows that nothing else does.
        text: what the tokens are, for the record.

    Returns:
        plain JSON: `quantized` (linear maps replaced), `group_size` (of int4, else None), `tokens`, `text`, `max_abs`
        and `mean_abs` difference of logits, `logit_std` (their spread before), `top1` (share of positions with the same
        most likely token), `nats_before` and `nats_after` (negative log-likelihood per token of what it reads).

    Raises:
        Unsupported: no kernel of this torchao for this device.
    """
    before = _logits(model, tokens)
    n_quantized = quantize(model, weights) if weights else 0
    with _supported(weights):
        after = _logits(model, tokens)
    group = group_size(model) if weights == "int4" else None
    nats = {"nats_before": _nats(before, tokens), "nats_after": _nats(after, tokens)}
    return {"quantized": n_quantized, "group_size": group, "text": text} | _agreement(before, after) | nats


def quantize(model: nn.Module, weights: str) -> int:
    """Replace the weights of every linear map in place, the output layer included; return how many were replaced.

    An embedding that shared its matrix with the output layer keeps it in the old type, for a step to look up a row of.

    Raises:
        Unsupported: no kernel of this torchao for this device, or nothing was replaced.
    """
    before = {name: type(module.weight) for name, module in _linears(model)}
    with _supported(weights), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import quantize_

        quantize_(model, _config(weights, next(model.parameters()).device.type, group_size(model)))
    replaced = sum(type(module.weight) is not before[name] for name, module in _linears(model))
    if replaced < len(before):
        raise Unsupported(f"torchao made {weights} weights of {replaced} of {len(before)} linear maps only")
    return replaced


@contextlib.contextmanager
def _supported(weights: str) -> Iterator[None]:
    """Turn torchao's various ways of saying that it has no kernel into one."""
    try:
        yield
    except (ImportError, NotImplementedError, AssertionError, RuntimeError) as error:
        if isinstance(error, Unsupported):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise Unsupported(f"torchao has no {weights} weights here: {type(error).__name__}: {reason}") from error


def group_size(model: nn.Module) -> int:
    """Return how many weights of a row share an int4 scale: the largest choice that divides the rows of every map."""
    widths = [module.in_features for _, module in _linears(model)]
    return next((size for size in GROUP_SIZES if all(width % size == 0 for width in widths)), GROUP_SIZES[-1])


def _linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _config(weights: str, device: str, group: int) -> Any:
    """Return torchao's configuration for weight-only quantization of a device."""
    if weights == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig(set_inductor_config=False)
    if device == "cpu":
        # torchao keeps its only int4 layout for processors among the prototypes.
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=group)
    from torchao.quantization import Int4WeightOnlyConfig

    return Int4WeightOnlyConfig(group_size=group, int4_packing_format="tile_packed_to_4d", set_inductor_config=False)


def _random_tokens(model: PreTrainedModel, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(model.config.vocab_size, (1, _AGREEMENT_TOKENS), generator=generator)
    return ids.to(model.device)


@torch.inference_mode()
def _logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return logits [T, V] in the model's type."""
    return model(input_ids=tokens, use_cache=False).logits.squeeze(0)


def _agreement(before: torch.Tensor, after: torch.Tensor) -> dict[str, Any]:
    differences = [(a.float() - b.float()).abs() for a, b in zip(before, after, strict=True)]
    return {
        "tokens": len(before),
        "max_abs": max(float(row.max()) for row in differences),
        "mean_abs": float(np.mean([float(row.mean()) for row in differences])),
        "logit_std": float(np.mean([float(row.float().std()) for row in before])),
        "top1": float((before.argmax(-1) == after.argmax(-1)).float().mean()),
    }


def _nats(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Return the mean negative log-likelihood of the tokens after the first."""
    # Row by row: a vocabulary of 262,144 in float32 for every position at once would outweigh the model.
    rows = zip(logits[:-1], tokens[0, 1:], strict=True)
    return float(np.mean([float(nn.functional.cross_entropy(row.float(), token)) for row, token in rows]))


def quantization_table(results: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Lay out measured rungs by weight type, with the ratio of the largest rung's time to the smallest one's.

    That ratio is the report's "inertia", asked again with fewer bytes. An unsupported type has no row.
    """
    results = [result for result in results if result["supported"]]
    rows = []
    for result in results:
        same = [other for other in results if other["weights"] == result["weights"]]
        small, large = (pick(same, key=lambda other: other["parameters"]) for pick in (min, max))
        inertia = ratio(large, small, "seconds_per_token", "model") if large is not small else None
        rows.append(_row(result) | _inertia(inertia))
    return pd.DataFrame(rows)


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    seconds = float(np.median(result["seconds_per_token"]))
    return {
        "weights": result["weights"],
        "name": result["name"],
        "ms_per_token": 1e3 * seconds,
        "gib": result["weight_bytes"] / GIB,
        "gb_per_s": result["bytes_per_token"] / seconds / 1e9,
        "top1": result["agreement"]["top1"],
        "max_abs": result["agreement"]["max_abs"],
    }


def _inertia(found: Any) -> dict[str, float]:
    """Return the ratio with its interval; one rung has the ratio 1 to itself."""
    if found is None:
        return {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    low, high = (found.interval.low, found.interval.high) if found.interval else (found.value, found.value)
    return {"ratio": found.value, "ratio_low": low, "ratio_high": high}
