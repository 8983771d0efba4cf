"""Training throughput of both architectures beside a plain GPT loop of the same shape, on the CPU in float32.

    python benchmarks/train_throughput.py [--threads 1 2] [--repeats 9] [--steps 4] [--clock wall|cpu]

The plain arm is what one writes after reading nanoGPT: separate modules, exact GELU, fused attention, all logits at
once into F.cross_entropy, AdamW with PyTorch's CPU default (not fused) and decay on matrices. Ours are the same d128_l4
transformer and the ResNet-BK of that grid point, with `next_token_loss` and `adamw`. A step is forward, backward and
update. Arms are interleaved, so that other load falls on all of them; lines give the median over repeats and the
smallest and largest in brackets, and ratios are formed within one repeat (above 1: more tokens per second than plain).
On a busy machine `--clock cpu` with one thread is the fairer clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.scaling.optim import adamw, next_token_loss
from labkit.scaling.resnet_bk import ResNetBK, ResNetBKConfig
from labkit.scaling.transformer import Transformer, TransformerConfig

WIDTH, LAYERS, HEADS, CONTEXT, VOCABULARY, BATCH = 128, 4, 4, 128, 2048, 16
LEARNING_RATE, WEIGHT_DECAY, BETAS = 1e-3, 0.1, (0.9, 0.95)

Step = Callable[[Tensor, Tensor], object]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


class PlainBlock(nn.Module):
    """Pre-norm block: attention from one qkv projection, then a GELU MLP of four widths."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv, self.projection = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, d] to [B, T, d]."""
        batch, length, width = x.size()
        split = self.qkv(self.norm_1(x)).split(width, dim=2)
        query, key, value = (part.view(batch, length, HEADS, width // HEADS).transpose(1, 2) for part in split)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).contiguous().view(batch, length, width))
        return x + self.down(self.activation(self.up(self.norm_2(x))))


class PlainGPT(nn.Module):
    """Embeddings, blocks, norm and an untied head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH, bias=False), nn.Linear(WIDTH, VOCABULARY, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))


def plain_step() -> tuple[int, Step]:
    """Return the number of parameters of the plain model and its training step."""
    model = PlainGPT()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS)

    def step(ids: Tensor, targets: Tensor) -> None:
        loss = model(ids, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return sum(parameter.numel() for parameter in model.parameters()), step


def our_step(model: Transformer | ResNetBK) -> tuple[int, Step]:
    """Return the number of parameters of one of our models and its training step."""
    optimizer = adamw(model, LEARNING_RATE, WEIGHT_DECAY, BETAS)

    def step(ids: Tensor, targets: Tensor) -> None:
        loss = next_token_loss(model, ids, targets)
        if isinstance(model, ResNetBK):
            loss = loss + model.auxiliary_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return sum(parameter.numel() for parameter in model.parameters()), step


def build_arms() -> dict[str, tuple[int, Step]]:
    """Build the three arms on the grid point d128_l4."""
    shape = {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": LAYERS, "context": CONTEXT}
    arms = {
        "plain GPT": plain_step(),
        "Transformer": our_step(Transformer(TransformerConfig(n_heads=HEADS, **shape))),
        "ResNet-BK": our_step(ResNetBK(ResNetBKConfig(**shape))),
    }
    assert arms["plain GPT"][0] == arms["Transformer"][0]
    return arms


def interleave(arms: dict[str, tuple[int, Step]], repeats: int, steps: int, clock: Clock) -> dict[str, list[float]]:
    """Warm every arm up, then time `steps` steps of each in turn; return tokens per second of each repeat."""
    ids, targets = (torch.randint(VOCABULARY, (BATCH, CONTEXT)) for _ in range(2))
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(-1, repeats):
        for name, (_, step) in arms.items():
            start = clock()
            for _ in range(steps):
                step(ids, targets)
            if repeat >= 0:
                rates[name].append(steps * ids.numel() / (clock() - start))
    return rates


def spread(values: list[float], digits: int) -> str:
    """Write median [min .. max]."""
    return f"{statistics.median(values):10,.{digits}f} [{min(values):,.{digits}f} .. {max(values):,.{digits}f}]"


def main() -> None:
    """Print tokens per second and ratios at each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        arms = build_arms()
        rates = interleave(arms, arguments.repeats, arguments.steps, CLOCKS[arguments.clock])
        shape = f"d{WIDTH}_l{LAYERS}, V={VOCABULARY}, {BATCH} x {CONTEXT} ids"
        print(f"== {threads} thread(s), torch {torch.__version__}, {shape}, {arguments.clock} clock", end=", ")
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for name, (parameters, _) in arms.items():
            ratio = [ours / plain for ours, plain in zip(rates[name], rates["plain GPT"], strict=True)]
            print(
                f"  {name:12} {parameters:>9,} parameters {spread(rates[name], 0)} tokens/s, x plain {spread(ratio, 2)}"
            )


if __name__ == "__main__":
    main()
