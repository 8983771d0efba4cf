"""From a folder and a budget to a plan: what a user asks before anything is read or allocated."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig

from labkit import device as machine
from labkit.base.units import format_bytes, parse_bytes
from labkit.offload import assemble
from labkit.offload.headers import open_checkpoint
from labkit.offload.memory import anonymous_bytes
from labkit.offload.planner import Plan, Rates, choose
from labkit.offload.readers import WAYS, Way


def plan(
    checkpoint: str | Path,
    *,
    memory: str | int | None = None,
    batch_size: int,
    seq_len: int,
    lora: LoraConfig | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    reader: Way | None = None,
    rates: Rates | None = None,
) -> Plan:
    """Work out how a step would be run, and what it takes, without reading a weight.

    Args:
        checkpoint: folder as save_pretrained writes it.
        memory: budget such as "2GiB"; None for nine tenths of what is free, and what the process holds.
        batch_size: samples of a step.
        seq_len: tokens of a sample.
        lora: PEFT's configuration of the adapters; None to score only.
        dtype: type to compute in; None for the stored one.
        device: "cpu" or "cuda".
        reader: way of reading; None to try which is faster.
        rates: bandwidth and FLOP/s; None to measure them, in about two seconds.

    Raises:
        TooSmall: the budget is below what the job needs at its leanest; the message has that.
        CannotStream: the model cannot be streamed.
        DamagedCheckpoint: a header is wrong.
        ValueError: another reader than there are, or a batch of no samples or tokens.
    """
    check_choices(reader=reader, batch_size=batch_size, seq_len=seq_len)
    where = machine.require(device)
    parts = assemble.take_apart(open_checkpoint(checkpoint), lora, dtype, where, seed=0)
    if rates is None:
        trial = assemble.try_reading(parts)
        reader = reader or trial.way
        rates = assemble.rates_of(parts, trial, reader, batch_size * seq_len)
    request = assemble.request_for(parts, reader or "drop", batch_size, seq_len, rates)
    return choose(request, budget(memory, where))


def check_choices(*, reader: str | None = None, **counts: int | None) -> None:
    """Refuse choices made by hand that there are none of.

    Args:
        reader: way of reading.
        counts: numbers of at least 1, by their names.

    Raises:
        ValueError: the message names the choice and what may be chosen.
    """
    if reader is not None and reader not in WAYS:
        raise ValueError(f"reader is {reader!r}; it is {', '.join(map(repr, WAYS))}, or None to try")
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} is {value!r}; it is a whole number of at least 1, or None to leave it open")


def budget(memory: str | int | None, device: torch.device) -> int:
    """Return a budget in bytes.

    Raises:
        ValueError: no size, or more than this process may use here.
    """
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[1] if cuda else machine.memory_limit_bytes()
    if memory is None:
        own = torch.cuda.memory_allocated(device) if cuda else anonymous_bytes()
        left = torch.cuda.mem_get_info(device)[0] if cuda else machine.available_memory_bytes()
        return own + int(0.9 * left)
    asked = parse_bytes(memory)
    if asked > free:
        raise ValueError(f"memory is {format_bytes(asked)}, and this process may use {format_bytes(free)} at most")
    return asked
