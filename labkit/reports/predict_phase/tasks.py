"""What is trained and on what: a run's description, its model, its windows of real text, and how it is scored.

From scratch a run trains a GPT-2-shaped model on word pieces of its own; fine-tuned, it trains adapters of a pretrained
model on that model's tokens; and the small network of the report's earlier validation learns digits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit import corpora, models
from labkit.cell import data
from labkit.hybrid.gate import probe_size
from labkit.reports.predict_phase.digits import Digits, build_cnn, digit_losses

TASKS: dict[str, dict[str, Any]] = {
    "text-0.1m": {"n_embd": 64, "n_layer": 2, "n_head": 2},
    "text-1m": {"n_embd": 128, "n_layer": 4, "n_head": 4},
    "text-1m-fused": {"n_embd": 128, "n_layer": 4, "n_head": 4, "activation_function": "gelu_pytorch_tanh"},
    "text-10m": {"n_embd": 320, "n_layer": 7, "n_head": 5},
    "gpt2": {},
}
"""GPT-2-shaped models by name: what differs from GPT-2 small; vocabulary and context come with the run.

The fused one computes GPT-2's activation in one kernel: the same function to rounding, a tenth less time a step.
"""
ADAPTED = {"smollm2-135m-lora": "smollm2-135m", "tiny-qwen2-lora": "tiny-qwen2"}
"""Tasks that train adapters of a pretrained model; the tiny one is for goldens."""
CNN = "digits-cnn"
"""Task of the small convolutional network."""
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
FROZEN_TYPE = torch.bfloat16
"""Type of the pretrained weights; adapters are float32."""
CHARACTERS = 1_500_000
"""Most characters of training text that are tokenized for a pretrained model: several times what a run reads."""
LOGIT = 0.8
"""Standard deviation of the logits at the start."""
DRAWN = 0.02
"""That of every matrix as `models.build` draws it."""
BLOCKS = 64
"""Parts of the held-out text that losses are summed over."""
PACKAGES = ("transformers", "tokenizers", "peft")
"""What computes a run beside torch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training run, with everything its result depends on."""

    task: str
    """Key of TASKS."""
    arm: str
    """Key of `arms.ARMS`."""
    learning_rate: float
    """Peak rate."""
    steps: int
    """Nominal steps of the schedule, which is completed."""
    seed: int
    """Of the weights and of the order of batches."""
    corpus: str
    """Text, by name."""
    vocab_size: int
    """Tokens of the BPE."""
    context: int
    """Tokens of a window."""
    batch_size: int
    """Windows of a step."""
    held_out_windows: int
    """Windows scored before and after."""
    weight_decay: float
    """Decoupled decay of matrices."""
    beta2: float
    """AdamW's second-moment decay."""
    warmup_fraction: float
    """Share of the schedule in which the rate rises."""
    grad_clip: float
    """Largest norm of the gradient."""
    device: str
    """Device."""
    dtype: str
    """Compute type of matrix products."""
    threads: int
    """CPU threads."""

    @property
    def name(self) -> str:
        """Short name for people."""
        size = f"{self.steps} steps, batch {self.batch_size}"
        return f"{self.arm}, lr {self.learning_rate:g}, {size}, seed {self.seed}"


def revisions(run: Run) -> dict[str, str]:
    """Return the revisions of the data that a run reads; that of the digits is the version of scikit-learn."""
    if run.task == CNN:
        return {}
    return data.corpus(run.corpus) | (data.weights(ADAPTED[run.task]) if run.task in ADAPTED else {})


class Text:
    """Windows of a run's text: training ones in the order of the seed, probes from a generator of their own."""

    def __init__(self, run: Run) -> None:
        train, validation = _streams(run.corpus, run.vocab_size, ADAPTED.get(run.task))
        self._run = run
        self._train = torch.as_tensor(train, device=run.device)
        self._validation = torch.as_tensor(validation, device=run.device)
        self._offsets = torch.arange(run.context + 1, device=run.device)
        self._probes = np.random.default_rng((run.seed, 1))

    def batches(self) -> Iterator[Tensor]:
        """Yield training windows [B, T + 1], each pass over the text from a new phase and in a new order."""
        rng, run = np.random.default_rng((self._run.seed, 0)), self._run
        queue = np.empty(0, np.int64)
        while True:
            while len(queue) < run.batch_size:
                starts = np.arange(rng.integers(run.context), len(self._train) - run.context, run.context)
                queue = np.concatenate([queue, rng.permutation(starts)])
            yield self._windows(self._train, queue[: run.batch_size])
            queue = queue[run.batch_size :]

    def probe_batch(self) -> Tensor:
        """Draw training windows that the order of batches knows nothing of, [B / gate.PROBE_PART, T + 1]."""
        last = len(self._train) - self._run.context
        return self._windows(self._train, self._probes.integers(0, last, probe_size(self._run.batch_size)))

    def held_out(self) -> Tensor:
        """Return the windows that are scored, without overlap, [n, T + 1].

        Raises:
            ValueError: the text holds fewer.
        """
        starts = np.arange(0, len(self._validation) - self._run.context, self._run.context)
        wanted = self._run.held_out_windows
        if len(starts) < wanted:
            raise ValueError(f"{self._run.corpus}'s validation text holds {len(starts)} windows, not {wanted}")
        return self._windows(self._validation, starts[:wanted])

    def _windows(self, stream: Tensor, starts: np.ndarray) -> Tensor:
        return stream[torch.as_tensor(starts, device=stream.device)[:, None] + self._offsets]


@functools.cache
def _streams(corpus: str, vocab_size: int, pretrained: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return training and validation tokens: word pieces of a BPE of our own, or the pretrained model's tokens."""
    text = corpora.load(corpus)
    if pretrained is None:
        tokens = corpora.tokenize(text, vocab_size)
        return tokens.train.astype(np.int64), tokens.validation.astype(np.int64)
    from transformers import AutoTokenizer  # here, because only adapters need it and it takes seconds

    folder, _ = models.prepare(pretrained)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    parts = ("\n".join(split)[:CHARACTERS] for split in (text.train, text.validation))
    return tuple(np.array(tokenizer(part)["input_ids"], np.int64) for part in parts)


def build(run: Run) -> nn.Module:
    """Build the run's model, or load it and put adapters on it; only what is trained requires gradients."""
    if run.task == CNN:
        return build_cnn(run.seed, run.device)
    return _adapted(run) if run.task in ADAPTED else _from_scratch(run)


def data_of(run: Run) -> Text | Digits:
    """Return what the run reads."""
    return Digits(run.batch_size, run.seed, run.device) if run.task == CNN else Text(run)


def _adapted(run: Run) -> nn.Module:
    from peft import LoraConfig  # here, because only adapters need it and it takes seconds

    from labkit.models.wrapping import with_adapters

    base = models.load(ADAPTED[run.task], dtype=FROZEN_TYPE, device=run.device).model
    torch.manual_seed(run.seed)
    return with_adapters(base, LoraConfig(task_type="CAUSAL_LM", **LORA)).to(run.device).train()


def _from_scratch(run: Run) -> nn.Module:
    """Build a model without dropout; its first loss is ln V within half a nat.

    Maps are N(0, 1/inputs), those into the residual stream smaller by the root of their number (GPT-2's rule) and
    embeddings, which are the head too, N(0, LOGIT^2/width). 0.02 everywhere suits GPT-2's width of 768; at 64 it leaves
    AdamW at the unigram loss.
    """
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = TASKS[run.task] | off | {"vocab_size": run.vocab_size, "n_positions": run.context}
    model = models.build("gpt2", seed=run.seed, device=run.device, **shape)
    into_residual = (2 * model.config.n_layer) ** -0.5
    for name, parameter in model.named_parameters():
        if "wte" in name or "wpe" in name:
            parameter.data.mul_(LOGIT * model.config.n_embd**-0.5 / DRAWN)
        elif parameter.dim() == 2:
            share = into_residual if "c_proj" in name else 1.0
            parameter.data.mul_(share * len(parameter) ** -0.5 / DRAWN)
    return model.train()


def losses_of(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the loss of every position in nats, [B, T]; of every sample, [B, 1], where the rows are digits."""
    if windows.is_floating_point():
        return digit_losses(model, windows)
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits.float().flatten(0, 1)
    return functional.cross_entropy(logits, windows[:, 1:].flatten(), reduction="none").view(len(windows), -1)


@torch.no_grad()
def score(model: nn.Module, windows: Tensor, batch_size: int) -> np.ndarray:
    """Return mean nats per token of consecutive blocks of windows, [BLOCKS or fewer]."""
    model.eval()
    nats = torch.cat([losses_of(model, part).mean(1) for part in windows.split(batch_size)])
    model.train()
    parts = np.array_split(nats.double().cpu().numpy(), min(BLOCKS, len(nats)))
    return np.array([part.mean() for part in parts])
