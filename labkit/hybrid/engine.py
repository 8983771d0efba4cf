"""One hybrid run around any loop of forward, backward and optimizer step: three calls a step, and the rest is here.

    hybrid = Hybrid(model, optimizer, config, total_steps=600, scheduler=scheduler, probe=probe)
    while not hybrid.over:
        hybrid.step_begin()
        loss = ...; loss.backward()
        hybrid.gradients_ready()
        optimizer.step(); scheduler.step(); optimizer.zero_grad()
        hybrid.step_end(float(loss))

A Predict phase happens inside `step_end`, all of it at once: a jump and a few forward passes that probe it. A forward
pass for every predicted step, as the original made, would cost a third of the step it saves.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from labkit.hybrid.config import LEADS, HybridConfig
from labkit.hybrid.gate import Losses, LossTrend, Verdict, compare, overshoot
from labkit.hybrid.history import History
from labkit.hybrid.kinds import JUMPS, LEAD_KINDS
from labkit.hybrid.leads import Lead
from labkit.hybrid.momentum import advance_steps, damp_momentum
from labkit.hybrid.phases import PhaseMachine
from labkit.hybrid.predictors import Predictor, Proposal, Recorder
from labkit.hybrid.rollback import Snapshot
from labkit.hybrid.vectors import Tensors, add, assign, dots, empty_like, gradients, norm

RECORDED = 4
"""Last steps of a phase whose gradients are averaged, for the slope at the start of a jump."""

Draw = Callable[[int], Losses]
"""Draws so many fresh training batches and returns what measures their losses."""


class Hybrid:
    """The state of one hybrid run."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: HybridConfig,
        *,
        total_steps: int,
        scheduler: Any = None,
        scaler: Any = None,
        probe: Draw | None = None,
    ) -> None:
        """Set up buffers for the parameters that require gradients.

        Args:
            model: what is trained.
            optimizer: AdamW, Muon, SGD or any other; its state is kept consistent and never replaced.
            config: phases, predictor and gate.
            total_steps: nominal steps: the length of the schedule.
            scheduler: stepped once for each predicted step, so that it ends where it should; one that follows what an
                evaluation finds has no step to take.
            scaler: a gradient scaler, put back when a jump is undone.
            probe: draws fresh training batches; needed unless the gate is "always".

        Raises:
            ValueError: nothing to train, or a gate that probes without a probe.
        """
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("Hybrid has nothing to train: no parameter of the model requires a gradient")
        if config.probes and probe is None:
            raise ValueError(f"gate {config.gate!r} compares losses: give `probe`, which draws fresh training batches")
        self.config, self.machine = config, PhaseMachine(config, total_steps)
        self.history = History()
        self.trend = LossTrend(config.divergence_threshold)
        self._optimizer = getattr(optimizer, "optimizer", optimizer)
        self._scheduler, self._scaler, self._probe = scheduler, scaler, probe
        self._parameters = [p for _, p in named]
        self._groups = [0] * len(named)
        self._lead: Lead | None = None
        self._predictor: Predictor | None = None
        self._peak_rate, self._began = 0.0, time.perf_counter()
        if config.predictor in LEADS:
            self._lead = LEAD_KINDS[config.predictor](self._parameters, config)
            return
        self._predictor = JUMPS[config.predictor]([name for name, _ in named], self._parameters, config)
        self._recorder = Recorder(self._parameters, config)
        self._snapshot = Snapshot(self._parameters, config.history_device)
        self._jump = empty_like(self._parameters, getattr(torch, config.history_dtype), config.history_device)
        self._pending: dict[str, Any] | None = None

    @property
    def over(self) -> bool:
        """Whether the schedule is complete."""
        return self.machine.over

    @property
    def rate(self) -> float:
        """The learning rate of the next step, of the first group of parameters."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step_begin(self) -> None:
        """Call before the forward pass of a real step."""
        self._began = time.perf_counter()
        self._peak_rate = max(self._peak_rate, self.rate)
        if self._lead is not None:
            share = self.rate / self._peak_rate if self._peak_rate else 0.0
            self._lead.before_step(self.machine.nominal / self.machine.total, share)
        if self._predictor is not None:
            self._predictor.before_step(last=self.machine.left == 1)

    def gradients_ready(self, grad_norm: float | None = None) -> None:
        """Call between the backward pass and the optimizer's step; the norm is computed where it is not given."""
        if self._predictor is None:
            return
        if self._pending is None:
            length = self._norm(grad_norm)
            # A gradient scaler lets overflows pass and skips the step; in a mean, infinity would stay for good.
            if self.machine.left <= RECORDED and math.isfinite(length):
                self._recorder.observe()
            self.trend.is_spike(length)
        elif not self._pending["met"]:
            self._pending["met"] = True
            spike = self.trend.is_spike(self._norm(grad_norm))
            self._pending["spoiled"] |= spike
            if not spike:
                self._correct()

    def _norm(self, given: float | None) -> float:
        return norm(gradients(self._parameters)) if given is None else float(given)

    def _correct(self) -> None:
        """Hold the first gradient after a jump against it: step back where it went too far, calm the momentum."""
        both = (self._recorder.mean, gradients(self._parameters))
        slopes = [float(dots(gradient, self._jump, self._groups).sum()) for gradient in both]
        tau = overshoot(*slopes)
        if tau < 1 and self.config.gate == "probe":
            add([p.data for p in self._parameters], self._jump, tau - 1)
            self._predictor.start_block()
            self.history.amend(overshoot=tau)
        if self.config.damp_momentum:
            damp_momentum(self._optimizer, self._parameters)

    def step_end(self, loss: float) -> None:
        """Call after the optimizer's and the scheduler's step, with the loss of the step; Predict happens here."""
        phase = self.machine.phase
        self.machine.count_real()
        self.history.real(self.machine.nominal, phase, loss, time.perf_counter() - self._began)
        if self._lead is not None:
            self._lead.after_step()
        if self._predictor is not None:
            self._after_step(loss)
        elif not self.machine.left:
            self.machine.end_phase()

    def _after_step(self, loss: float) -> None:
        self._predictor.after_step(self.rate)
        if self._pending is not None:
            self._pending["losses"].append(loss)
            self._pending["spoiled"] |= not math.isfinite(loss)
            if self._pending["spoiled"] and self.config.gate != "always":
                self._undo()
                return
        self.trend.observe(self.machine.nominal, loss)
        if not self.machine.left:
            self._phase_ended()

    def _phase_ended(self) -> None:
        if self._pending is not None and not self._settle():
            return
        proposal = self._propose() if self.machine.may_predict else None
        if proposal is None:
            if not self.machine.over:
                self.machine.end_phase()
        else:
            self.machine.predict(self._predict(proposal))
        self._predictor.start_block()
        self._recorder.restart()

    def _settle(self) -> bool:
        """Judge a jump after its Correct phase; return whether it stays."""
        losses, bound = self._pending["losses"], self._pending["bound"]
        if self.config.gate != "always" and sum(losses) / len(losses) > bound:
            self._undo()
            return False
        self._predictor.judge(self._jump, self._pending["steps"])
        self._pending = None
        return True

    def _undo(self) -> None:
        before = self._pending["nominal"]
        self._snapshot.restore(self._optimizer, self._scheduler, self._scaler)
        self.history.undone(before, self._pending["losses"], self._pending["bound"])
        self.machine.undo(before)
        self.trend.forget_after(before)
        self._pending = None
        self._predictor.start_block()
        self._recorder.restart()

    def _propose(self) -> Proposal | None:
        steps = self.machine.horizon(self._predictor.block_steps)
        if not steps:
            return None
        proposal = self._predictor.propose(steps, self.rate, self._optimizer)
        doubted = proposal is not None and proposal.confidence < self.config.confidence_threshold
        if doubted and self.config.gate != "always":
            self.history.refused(self.machine.nominal, proposal.confidence)
            return None
        return proposal

    def _predict(self, proposal: Proposal) -> int:
        """Make a jump if it is believed; return its steps, 0 where it was refused."""
        began = time.perf_counter()
        self._snapshot.take(self._optimizer, self._scheduler, self._scaler)
        kept, verdict = (proposal.steps, None) if self.config.gate == "always" else self._search(proposal)
        self._move(proposal, kept)
        length = norm(proposal.jump) * kept / proposal.steps
        if kept:
            self._accept(proposal, kept)
        self.history.predicted(
            self.machine.nominal, kept, proposal.confidence, length, verdict, time.perf_counter() - began
        )
        return kept

    def _search(self, proposal: Proposal) -> tuple[int, Verdict]:
        """Find how far along a jump the probe believes, in steps."""
        losses = self._probe(self.config.probe_batches)
        here = list(losses())
        kept, verdict = 0, Verdict(accepted=False, before=_mean(here), after=_mean(here), error=0.0)
        base = here
        for steps in self._stations(proposal.steps):
            if kept and steps < kept:
                break
            self._move(proposal, steps)
            there = list(losses())
            found = compare(here, there, self._wanted(steps - kept))
            if not found.accepted and (kept or self.config.line_search):
                break
            if not found.accepted and self._is_hopeless(found, steps):
                return 0, found
            if found.accepted:
                kept, here = steps, there
                verdict = compare(base, there, 0.0)
            elif not kept:
                verdict = found
        return (0 if self.config.gate == "never" else kept), verdict

    def _stations(self, steps: int) -> Sequence[int]:
        """List where a jump is probed: on the way, by doubling, or at its end and, that refused, at half."""
        if self.config.line_search:
            return [2**i for i in range(steps.bit_length()) if 2**i <= steps]
        if interval := self.config.correction_interval:
            return [*range(interval, steps, interval), steps]
        return [steps, steps // 2] if steps > 1 else [steps]

    def _wanted(self, steps: int) -> float:
        """Return the nats that a jump of so many steps must gain; a line search asks for any."""
        if self.config.line_search:
            return 0.0
        return self.config.least_gain * max(0.0, -self.trend.slope()) * steps

    def _is_hopeless(self, found: Verdict, steps: int) -> bool:
        """Say whether half the jump cannot gain either: on a parabola that starts with the slope of the real steps."""
        return found.after - found.before >= max(0.0, -self.trend.slope()) * steps

    def _move(self, proposal: Proposal, steps: int) -> None:
        """Put the weights so many steps along a jump, counted from the snapshot."""
        self._snapshot.restore_weights()
        if steps:
            add([p.data for p in self._parameters], proposal.jump, steps / proposal.steps)

    def _accept(self, proposal: Proposal, kept: int) -> None:
        """Advance what counts steps, and remember the jump until it is judged."""
        assign(self._jump, [change * (kept / proposal.steps) for change in proposal.jump])
        bound = self.trend.bound(self.config.correct_steps)
        self._pending = {"nominal": self.machine.nominal, "steps": kept, "bound": bound, "losses": []}
        self._pending |= {"met": False, "spoiled": False}
        if not self.config.advance_schedule:
            return
        for _ in range(kept if _goes_by_steps(self._scheduler) else 0):
            self._scheduler.step()
        advance_steps(self._optimizer, self._parameters, kept)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state's tensors by name, in no particular order."""
        if self._lead is not None:
            return _flat(self._lead.buffers())
        own = {"gradients": self._recorder.mean, "jump": self._jump}
        return _flat(own | self._predictor.buffers()) | (self._snapshot.tensors() if self._pending else {})

    def numbers(self) -> dict[str, Any]:
        """Return the rest of the state, as plain JSON."""
        state = {"machine": self.machine.state(), "trend": self.trend.state(), "history": self.history.rows}
        state |= {"peak_rate": self._peak_rate, "config": self.config.as_dict(), "total": self.machine.total}
        if self._lead is not None:
            return state | {"lead_steps": self._lead.steps}
        rest = self._snapshot.numbers() if self._pending else None
        return (
            state
            | {"predictor": self._predictor.numbers(), "pending": self._pending, "snapshot": rest}
            | {"recorded": self._recorder.count}
        )

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take up a state that `tensors` and `numbers` returned, at the same weights and optimizer state.

        Raises:
            ValueError: the state belongs to another configuration or length of the schedule.
        """
        for name, own in (("config", self.config.as_dict()), ("total", self.machine.total)):
            if numbers[name] != own:
                raise ValueError(f"the saved hybrid state has {name} {numbers[name]}, this run has {own}")
        self.machine = PhaseMachine.restored(self.config, self.machine.total, numbers["machine"])
        self.trend.load(numbers["trend"])
        self.history, self._peak_rate = History(numbers["history"]), numbers["peak_rate"]
        if self._lead is not None:
            self._lead.load(_nested(tensors), numbers["lead_steps"])
            return
        nested = _nested(tensors)
        assign(self._recorder.mean, nested["gradients"])
        self._recorder.count = numbers["recorded"]
        assign(self._jump, nested["jump"])
        self._predictor.load(nested, numbers["predictor"])
        self._pending = numbers["pending"]
        if self._pending is not None:
            self._snapshot.load(tensors, numbers["snapshot"], self._optimizer)


def _goes_by_steps(scheduler: Any) -> bool:
    """Say whether a schedule advances with steps; `ReduceLROnPlateau` and its like ask for a metric instead."""
    if scheduler is None:
        return False
    asked = inspect.signature(scheduler.step).parameters.values()
    return all(one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in asked)


def _flat(buffers: Mapping[str, Tensors]) -> dict[str, Tensor]:
    return {f"{name}.{i}": tensor for name, own in buffers.items() for i, tensor in enumerate(own)}


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, Tensors]:
    found: dict[str, dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, number = key.partition(".")
        if number.isdecimal():
            found.setdefault(name, {})[int(number)] = tensor
    return {name: [own[i] for i in sorted(own)] for name, own in found.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
