"""What transformers' Trainer measures as it trains, step by step, for whoever follows (`labkit.metrics`).

    with TrainerMetrics("my run") as followed:
        Trainer(..., callbacks=[followed]).train()

It works in trl's trainers, too. Where nobody follows nothing is done.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from numbers import Real
from typing import Any, Self

import psutil
import torch
from torch import Tensor
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from labkit import metrics

_SETTINGS = ("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
_SETTINGS += ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "bf16", "fp16")
_ADAPTER = re.compile(
    r"^(?:module\.)?(?:base_model\.model\.)?(?P<map>.+)\.lora_\w+?(?:\.(?P<adapter>[^.]+))?(?:\.weight)?$"
)
_TOKENS = ("num_tokens", "num_input_tokens_seen")
"""Where trl's trainers and transformers' own count the tokens so far."""


class TrainerMetrics(TrainerCallback):
    """Tells all numbers that a Trainer logs, with tokens per second, memory and the gradient norm of each adapter.

    A Trainer needs one of its own. One that raises tells nobody of its last log; leaving the callback's block does.
    """

    def __init__(self, run: str, about: Mapping[str, Any] | None = None) -> None:
        """Take the run's name.

        Args:
            run: name by which people find it.
            about: its settings, as JSON can hold them or else as text; by default some of the Trainer's own.
        """
        self._run, self._about = run, None if about is None else json.loads(json.dumps(about, default=str))
        self._logged: tuple[int, dict[str, Any]] | None = None
        self._own: dict[str, float] = {}
        self._norms: tuple[list[str], Tensor] | None = None
        self._told_norms: dict[str, float] = {}
        self._adapters: dict[str, list[torch.nn.Parameter]] | None = None
        self._counted: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell what the run is."""
        if not _followed(state):
            return
        own = {name: getattr(args, name) for name in _SETTINGS} if self._about is None else self._about
        metrics.begin(self._run, own)
        # A continued run counts from where it was, which is known with its first log.
        self._counted = None if state.global_step else (0.0, time.perf_counter())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell what was logged after the step before."""
        self.flush()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the norm of each adapter's gradient, if this step will be logged."""
        if not _followed(state) or not _is_logged(args, state, state.global_step + 1):
            return
        if self._adapters is None:
            self._adapters = adapters_of(kwargs["model"])
        self._norms = gradient_norms(self._adapters)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep what is logged until the next event: a callback after this one may add to it."""
        if not _followed(state) or logs is None:
            return
        self.flush()
        self._logged = (state.global_step, logs)
        self._own = {"memory_bytes": float(psutil.Process().memory_info().rss)} | self._speed(logs)
        if self._norms is not None:
            # Trainer has clipped by now and logs the norm from before; the adapters' are told from before, too.
            factor = _unclipping(logs.get("grad_norm"), args.max_grad_norm)
            (names, norms), self._norms = self._norms, None
            self._told_norms = dict(zip(names, norms.mul(factor).tolist(), strict=True))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell what was logged last."""
        self.flush()

    def flush(self) -> None:
        """Tell what was logged and not yet told."""
        if self._logged is None:
            return
        (step, logs), self._logged = self._logged, None
        norms, self._told_norms = self._told_norms, {}
        metrics.emit(self._run, step, _told(logs) | self._own, adapters=norms)

    def _speed(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Return tokens per second since the log before."""
        tokens = next((logs[name] for name in _TOKENS if name in logs), None)
        if tokens is None:
            return {}
        before, self._counted = self._counted, (float(tokens), time.perf_counter())
        if before is None:
            return {}
        return {"tokens_per_second": (self._counted[0] - before[0]) / (self._counted[1] - before[1])}


def adapters_of(model: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """Return the trainable matrices of each adapter by the name of the map it adapts."""
    found: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        match = _ADAPTER.match(name) if parameter.requires_grad else None
        if match:
            other = match["adapter"] not in (None, "default")
            found.setdefault(match["map"] + (f" ({match['adapter']})" if other else ""), []).append(parameter)
    return found


def gradient_norms(adapters: Mapping[str, list[torch.nn.Parameter]]) -> tuple[list[str], Tensor] | None:
    """Return the adapters that have a gradient and its norm for each, over its matrices together; None if none has.

    All in a few operations, and without waiting for a GPU: there are hundreds of adapters, and this runs at every step.
    """
    owned = [(name, p.grad) for name, own in adapters.items() for p in own if p.grad is not None]
    if not owned:
        return None
    names = list(dict.fromkeys(name for name, _ in owned))
    place, where = {name: i for i, name in enumerate(names)}, owned[0][1].device
    norms = torch._foreach_norm([gradient for _, gradient in owned])
    squares = torch.stack([norm.to(where, torch.float32) for norm in norms]).square()
    owners = torch.tensor([place[name] for name, _ in owned], device=where)
    return names, squares.new_zeros(len(names)).index_add_(0, owners, squares).sqrt_()


def _followed(state: TrainerState) -> bool:
    return metrics.wanted() and state.is_world_process_zero


def _is_logged(args: TrainingArguments, state: TrainerState, step: int) -> bool:
    if args.logging_strategy != "steps" or (step == 1 and args.logging_first_step):
        return True
    return step % state.logging_steps == 0


def _unclipping(norm: Any, largest: float | None) -> float:
    """Return what undoes the clipping of a gradient whose norm was `norm`, as torch clips."""
    if not isinstance(norm, Real) or not largest:
        return 1.0
    return max(1.0, (float(norm) + 1e-6) / largest)


def _told(logs: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: float(value) for name, value in logs.items() if isinstance(value, Real)}
    return numbers | {name: value for name, value in logs.items() if name == "phase"}
