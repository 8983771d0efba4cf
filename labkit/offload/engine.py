"""A causal LM far larger than memory, straight from its safetensors, with exact gradients for its adapters.

with StreamedLM("phi-4", lora=LoraConfig(r=8, lora_alpha=16, target_modules=[...]), memory="4GiB") as model:
    optimizer = torch.optim.AdamW(model.adapters().values(), lr=1e-4)
    for batch in batches:
        print(model.step(batch, optimizer).loss)
    model.save_adapter("adapter")
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig

from labkit import device as machine
from labkit.offload import assemble, persist, updates
from labkit.offload.batches import complete, n_counted
from labkit.offload.boundaries import Spilled
from labkit.offload.generate import end_tokens, generate, require_positions, require_prompts
from labkit.offload.head import Batch
from labkit.offload.headers import CannotStream, open_checkpoint
from labkit.offload.lengths import too_long
from labkit.offload.planner import Plan, Rates, Request, choose, schedule
from labkit.offload.planning import budget, check_choices
from labkit.offload.readers import Way
from labkit.offload.step_report import Meter, StepReport
from labkit.progress import Progress

_SHOWN_SECONDS = 20.0
"""Expected length of a step from which on its progress is shown."""


class StreamedLM:
    """A model of which a few layers at a time are in memory; as a context manager it is closed at its end."""

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        lora: LoraConfig | None = None,
        adapter: str | Path | None = None,
        memory: str | int | None = None,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        seed: int = 0,
        reader: Way | None = None,
        micro_batch: int | None = None,
        slots: int | None = None,
        spill: bool | None = None,
        spill_dir: str | Path | None = None,
        callbacks: Sequence[Callable[[StepReport], None]] = (),
    ) -> None:
        """Take a checkpoint apart; no layer is read yet, save for new adapters of DoRA the maps that they are of.

        Args:
            checkpoint: folder as save_pretrained writes it: config.json, safetensors files, an index if several.
            lora: PEFT's configuration of new adapters, which are float32.
            adapter: folder of adapters as PEFT saves them, to go on with; excludes `lora`.
            memory: budget for the whole process such as "2GiB"; None for nine tenths of what is available. On a GPU it
                is a budget of the GPU's memory.
            dtype: type to compute in; None for the stored one.
            device: "cpu" or "cuda".
            seed: of adapters, dropout and whatever else draws random numbers.
            reader: "drop", "direct" or "cached"; None to try which of the first two is faster.
            micro_batch: samples that go through a layer together; None to let the plan choose.
            slots: buffers for layers; None to let the plan choose.
            spill: whether hidden states are kept in a file; None to let the plan choose.
            spill_dir: folder of that file; None for the system's temporary one.
            callbacks: called with the report of every step.

        Raises:
            FileNotFoundError: no checkpoint there.
            DamagedCheckpoint: a header or the index is wrong.
            CannotStream: the model is not one stack of layers or lacks weights, or the adapters are not LoRA of linear
                maps within the layers, drawn at random.
            MissingDevice: the device is not here.
            TooSmall: not even one sample of one token fits into the budget.
            ValueError: a choice that there is none of, such as another reader or no samples in a micro-batch.
        """
        check_choices(reader=reader, micro_batch=micro_batch, slots=slots)
        if lora is not None and adapter is not None:
            raise ValueError("lora makes new adapters and adapter loads old ones; give one of them")
        self._where = machine.require(device)
        self.folder, self.lora, self.seed, self.step_number = Path(checkpoint), lora, seed, 0
        if adapter is None:
            persist.require_bare(checkpoint)
        else:
            self.lora = persist.lora_of(adapter)
        self._budget = budget(memory, self._where)
        own_seed, own = seed if adapter is None else None, persist.nameless(self.lora)
        self._parts = assemble.take_apart(open_checkpoint(checkpoint), own, dtype, self._where, own_seed)
        if adapter is not None:
            persist.load_adapter(adapter, self.adapters())
        elif lora is not None and lora.use_dora:
            assemble.start_magnitudes(self._parts)
        self._choices = {"micro_batch": micro_batch, "slots": slots, "spill": spill}
        self._spill_dir = Path(spill_dir or tempfile.gettempdir())
        self.trial = assemble.try_reading(self._parts)
        self.reader = reader or self.trial.way
        self._plans: dict[tuple[int, int], Plan] = {}
        self._resumed_choices: dict[str, dict[str, int]] = {}
        self.plan_for(1, 1)
        self.passes = assemble.build_passes(self._parts, self.reader, seed, Spilled(self._spill_dir))
        self.passes.graph_up = self._learned_masks
        self._optimizer: torch.optim.Optimizer | None = None
        self.callbacks = list(callbacks)
        self.train()

    def adapters(self) -> dict[str, torch.nn.Parameter]:
        """Return the trainable parameters by PEFT's names."""
        return self._parts.skeleton.adapters()

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self._parts.skeleton.rest[self._parts.skeleton.table].shape[0]

    def train(self, mode: bool = True) -> None:
        """Switch dropout on or off."""
        self.passes.training = mode
        self._parts.skeleton.model.train(mode)

    def eval(self) -> None:
        """Switch dropout off."""
        self.train(False)

    def plan_for(self, batch_size: int, seq_len: int) -> Plan:
        """Return how a step of that many samples and tokens will be run.

        Raises:
            TooSmall: it does not fit into the budget.
            ValueError: the model has no positions for so many tokens.
        """
        shape = (batch_size, seq_len)
        if shape not in self._plans:
            rates = assemble.rates_of(self._parts, self.trial, self.reader, batch_size * seq_len)
            request = self._request_for(batch_size, seq_len, rates)
            self._learned_masks = request.footprint.learned_masks
            made = self._choices | self._resumed_choices.get(f"{batch_size}x{seq_len}", {})
            self._plans[shape] = choose(request, self._budget, **made)
        return self._plans[shape]

    def _request_for(self, batch_size: int, seq_len: int, rates: Rates) -> Request:
        try:
            return assemble.request_for(self._parts, self.reader, batch_size, seq_len, rates)
        except CannotStream as error:
            if not self._plans:
                raise
            raise too_long(self._parts.skeleton.model, seq_len, error.__cause__ or error) from error

    def gradients(self, batch: Batch, *, step: int | None = None) -> tuple[float, dict[str, torch.Tensor]]:
        """Return the mean loss over all labelled tokens of a batch, in nats, and its gradient by every adapter.

        Args:
            batch: input_ids [N, T]; attention_mask [N, T] where there is padding; labels [N, T], by default the ids
                without the padding. A label of -100 does not count. Labels stand at the same positions as the ids:
                they are shifted here, as transformers does.
            step: number of the step, which random numbers depend on; by default of the next one.

        Raises:
            ValueError: no adapters, no label, or values that are no ids, mask or labels.
            NotFinite: a hidden state, the loss or a gradient is infinite or no number.
            ReadError: weights could not be read.
        """
        adapters = self.adapters()
        if not adapters:
            raise ValueError("this model has no adapters; pass lora= or adapter= to train")
        batch = self._complete(batch)
        counted = n_counted(batch)
        with self._ready(batch, "step") as micro_batch:
            work = self.passes.open(batch, micro_batch, self.step_number if step is None else step)
            self.passes.up(work, keep=True)
            self.passes.through_head(work, counted)
            by_id = self.passes.down(work)
        return sum(work.losses), {name: by_id[id(parameter)] for name, parameter in adapters.items()}

    def step(self, batch: Batch, optimizer: torch.optim.Optimizer, *, max_grad_norm: float | None = None) -> StepReport:
        """Take one optimizer step on a batch, in one pass up and down the weights.

        Args:
            batch: as in `gradients`.
            optimizer: over `adapters()`.
            max_grad_norm: clip the whole gradient to this norm.

        Raises:
            NotFinite: as `gradients`; the adapters are left as they were.
            ValueError: the optimizer holds none of the adapters.
        """
        updates.require_adapters(optimizer, self.adapters())
        self._optimizer = optimizer
        with Meter(self.passes) as meter:
            loss, gradients = self.gradients(batch)
            norms = updates.apply(self.adapters(), gradients, optimizer, max_grad_norm)
        batch = self._complete(batch)
        plan = self.plan_for(*batch["input_ids"].shape)
        report = meter.report(step=self.step_number, loss=loss, tokens=n_counted(batch), norms=norms, plan=plan)
        self.step_number += 1
        for callback in self.callbacks:
            callback(report)
        return report

    def score(self, batch: Batch) -> torch.Tensor:
        """Return the loss of every position in nats, [N, T - 1], 0 where there is no label; one pass up the weights.

        Raises:
            ReadError, NotFinite, ValueError: as `gradients`.
        """
        batch = self._complete(batch)
        n_counted(batch)
        with self._ready(batch, "score") as micro_batch, self._evaluating():
            work = self.passes.open(batch, micro_batch, 0)
            self.passes.up(work, keep=False)
            return torch.cat(self.passes.position_losses(work)).cpu()

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Continue prompts with the likeliest tokens, one pass over the weights for a token of every sample.

        They are those of transformers' greedy `generate`, with what the model itself remembers between two tokens.

        Args:
            input_ids: prompts [N, T], padded on the left.
            attention_mask: 0 at the padding, [N, T].
            max_new_tokens: tokens to add at most, at least 1.
            eos_token_id: token that ends a sample, or several; it is repeated, of several the first.

        Returns:
            prompts and what follows, [N, T + new].

        Raises:
            ReadError, ValueError: as `gradients`, or padding on the right, or no end of a sample.
        """
        ends = end_tokens(eos_token_id, self.vocabulary)
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        batch = self._complete({name: value for name, value in given.items() if value is not None})
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
        batch.pop("labels")
        require_prompts(batch, max_new_tokens)
        require_positions(self.passes, batch, max_new_tokens)
        with self._ready(batch, "generate"), self._evaluating():
            return generate(self.passes, batch, max_new_tokens, ends)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapters as PEFT does, so that PeftModel and AutoPeftModelForCausalLM load them.

        Raises:
            DiskFull: no room.
        """
        persist.name_base(self._parts.skeleton, self.lora, self.folder)
        persist.save_adapter(self._parts.skeleton, Path(folder))

    def checkpoint(self, path: str | Path, extra: Mapping[str, Any] | None = None) -> None:
        """Write adapters, optimizer and step number into one file, in place of the one that is there.

        Args:
            path: a safetensors file.
            extra: further values to find again in `extra` after `resume`, such as where the data stands; JSON only.

        Raises:
            DiskFull: no room; the old file is left as it was.
        """
        state = {"step": self.step_number, "seed": self.seed, "checkpoint": str(self.folder.resolve())}
        state |= {"base": self._parts.checkpoint.fingerprint(), "extra": dict(extra or {})}
        state["choices"] = {f"{n}x{t}": {"micro_batch": p.micro_batch} for (n, t), p in self._plans.items()}
        state["dtype"] = str(self._parts.skeleton.model.dtype).removeprefix("torch.")
        persist.save_state(Path(path), state, self.lora, self.adapters(), self._optimizer)

    @classmethod
    def resume(cls, path: str | Path, *, checkpoint: str | Path | None = None, **options: Any) -> Self:
        """Return a model as it was when `checkpoint` wrote a file; `restore` then does the same for an optimizer.

        Args:
            path: the file.
            checkpoint: folder of the base, if it has moved.
            options: as of the class, memory for one.

        Raises:
            FileNotFoundError: no such file, or no base.
            DamagedCheckpoint: the file is damaged, or the base is not the one it was written for.
        """
        state = persist.load_state(Path(path))
        held = {"dtype": getattr(torch, state["dtype"]), "seed": state["seed"], "lora": state["lora"]}
        model = cls(checkpoint or state["checkpoint"], **held | options)
        persist.require_same_base(Path(path), state["base"], model._parts.checkpoint)
        persist.copy_into(Path(path), model.adapters())
        model.step_number, model.extra, model._resumed = state["step"], state["extra"], Path(path)
        # Sums over other micro-batches round otherwise, so what a shape was run with once it is run with again.
        model._resumed_choices = state["choices"]
        return model

    extra: Mapping[str, Any] = {}
    _resumed: Path | None = None
    _learned_masks = False

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer over `adapters()` the state it had when the file was written.

        Raises:
            ValueError: the model was not resumed from a file, or the file holds no such state.
        """
        if self._resumed is None:
            raise ValueError("restore belongs to a model that StreamedLM.resume returned")
        persist.load_optimizer(self._resumed, optimizer)
        self._optimizer = optimizer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and give back buffers and files."""
        self.passes.pool.close()
        self.passes.store.reader.close()
        self.passes.by_row.close()
        self.passes.boundaries.close()
        self.passes.prefix.close()

    def _complete(self, batch: Batch) -> dict[str, torch.Tensor]:
        rest, head = self._parts.skeleton.rest, self._parts.skeleton.head
        return complete(batch, self.vocabulary, rest[head].shape[0])

    def have_buffers(self, batch_size: int, seq_len: int) -> Plan:
        """Have the buffers that the plan for a batch says, and return it.

        Raises:
            TooSmall: as `plan_for`.
        """
        chosen, passes = self.plan_for(batch_size, seq_len), self.passes
        passes.pool.resize(chosen.slots, lambda: assemble.new_buffer(self._parts))
        if chosen.spill != isinstance(passes.boundaries, Spilled):
            passes.boundaries.close()
            passes.boundaries = assemble.keeper(chosen.spill, self._spill_dir)
        return chosen

    @contextmanager
    def _ready(self, batch: Batch, what: str) -> Iterator[int]:
        """Have buffers for a batch that is not too long, and show progress where it takes long."""
        self.passes.body.require_length({name: value for name, value in batch.items() if name != "labels"})
        chosen, passes = self.have_buffers(*batch["input_ids"].shape), self.passes
        skeleton, n_pieces = self._parts.skeleton, len(self._parts.pieces)
        n_units = len(schedule(len(skeleton.layers), skeleton.lowest_trained, n_pieces))
        shown = chosen.seconds > _SHOWN_SECONDS
        with Progress(n_units, f"{what} {self.step_number}") if shown else contextlib.nullcontext() as progress:
            passes.visited = (lambda place: progress.advance(1, place)) if shown else (lambda place: None)
            yield chosen.micro_batch

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.passes.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)
