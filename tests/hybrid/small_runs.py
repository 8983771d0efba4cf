"""Small real training runs that the tests of hybrid training share."""

import torch
from torch import nn
from torch.nn import functional

from labkit.hybrid import Hybrid, HybridConfig
from labkit.hybrid.gate import untouched


class Regression(nn.Module):
    """A two-layer network with dropout on noisy data; `batch(i)` is the i-th batch, the same in every run."""

    def __init__(self, seed=0, dropout=0.1):
        super().__init__()
        torch.manual_seed(seed)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 1))
        self.teacher = torch.randn(8, 1, generator=torch.Generator().manual_seed(9))

    def batch(self, i, size=32):
        generator = torch.Generator().manual_seed(1000 + i)
        x = torch.randn(size, 8, generator=generator)
        return x, torch.tanh(x @ self.teacher) + 0.1 * torch.randn(size, 1, generator=generator)

    def loss(self, batch):
        x, y = batch
        return functional.mse_loss(self.mlp(x), y)


class Quadratic(nn.Module):
    """0.5 sum h_i w_i^2, the same for every batch."""

    def __init__(self, curvature, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float32))
        self.curvature = torch.tensor(curvature, dtype=torch.float32)

    def batch(self, i):
        return None

    def loss(self, batch):
        return 0.5 * (self.curvature * self.w**2).sum()


class Linear(nn.Module):
    """g . w: the gradient is g everywhere."""

    def __init__(self, slope):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(len(slope)))
        self.slope = torch.tensor(slope)

    def batch(self, i):
        return None

    def loss(self, batch):
        return self.slope @ self.w


def linear_decay(optimizer, total):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))


def probe_of(model):
    """Fresh batches far from those of training."""
    drawn = iter(range(10_000, 20_000))

    def draw(n):
        batches = [model.batch(next(drawn)) for _ in range(n)]

        def losses():
            with untouched(model):
                return [float(model.loss(batch)) for batch in batches]

        return losses

    return draw


def train(model, config, steps, *, optimizer=None, scheduler=None, probe=None, watch=None):
    """Run until the schedule is complete; return the Hybrid."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = scheduler or linear_decay(optimizer, steps)
    hybrid = Hybrid(model, optimizer, config, total_steps=steps, scheduler=scheduler, probe=probe or probe_of(model))
    proceed(hybrid, model, optimizer, scheduler, watch=watch)
    return hybrid


def proceed(hybrid, model, optimizer, scheduler, *, watch=None, first_batch=0, until=None):
    """Take real steps until the schedule is complete or `until` batches are used; return the next batch's number."""
    model.train()
    i = first_batch
    while not hybrid.over and (until is None or i < until):
        hybrid.step_begin()
        loss = model.loss(model.batch(i))
        loss.backward()
        hybrid.gradients_ready()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        hybrid.step_end(float(loss.detach()))
        i += 1
        if watch:
            watch(hybrid)
    return i


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


EAGER = HybridConfig(
    warmup_steps=4,
    full_steps=8,
    predict_steps=4,
    correct_steps=2,
    gate="always",
    predict_until=0.9,
    damp_momentum=False,
)
