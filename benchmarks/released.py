"""The authors' PyTorch code in the cases of `benchmarks.speed`, on this machine.

python -m benchmarks.released FOLDER [CASE ...] [--runs 5] [--out results/speed/this/released.json]

FOLDER holds Networks.py, operations.py and genotypes.py of github.com/lcai-gz/MANAS; PyTorch has to
be installed beside this project (`pip install torch`; a build for CPU is enough). The modules are
used unchanged. The networks that the released code builds of them do not run, so they are built
here, as in the paper and in `manas_jax.models.network`, with softmax on all logits; the same holds
for the finite difference, where the released code exits. The losses are written here for all scenes
at once; the released code needs some hundred calls per step for them.

To compare with `benchmarks.speed`, run both on one machine within the same hour. On CPU, with
PyTorch's default number of threads, each case in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import THIS_MACHINE, speed
from benchmarks.cases import PAPER, SMALL
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.space import SearchSpace, alternating_genotype

# PyTorch is imported inside functions: the project does not require it.

SCENES, VERSIONS, SIDE = 4, 3, 64
PICTURE = (320, 480)

CASES = {  # name -> (kind of step, search space)
    "search_first_order_small": ("first_order", SMALL),
    "search_finite_difference_small": ("finite_difference", SMALL),
    "search_first_order_paper": ("first_order", PAPER),
    "train_small": ("train", SMALL),
    "inference_320x480_small": ("inference", SMALL),
    "inference_320x480_paper": ("inference", PAPER),
}


def build(modules: Any, space: SearchSpace, derived: bool):
    """The supernet, or the alternating network, of the released modules: a `torch.nn.Module`.

    Args:
      modules: the released `Networks`.
      space: channels and numbers of columns.
      derived: build the network of `manas_jax.space.alternating_genotype`, not the supernet.
    """
    import torch
    from torch import nn

    genotype = alternating_genotype(space)
    channels, names = list(space.channels), list(space.candidates)

    def shortcut(inputs, outputs):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def column(cell, i, widths):
        if not derived:
            return modules.MixModule(widths)
        parallel = genotype.columns[cell][i] == "parallel"
        return (modules.HorizontalModule if parallel else modules.FusionModule)(widths)

    def attention(cell, branch):
        if not derived:
            return modules.Attention(space.attention_groups, channels[branch])
        chosen = [names.index(name) for name in genotype.attention[cell][branch]]
        return modules.FixedAttention(channels[branch], space.attention_groups, chosen)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            first = channels[0]
            wide = first * modules.Bottleneck.expansion
            self.stem = nn.Sequential(
                modules.Bottleneck(3, first, downsample=shortcut(3, wide)),
                modules.Bottleneck(wide, first),
            )
            self.transitions, self.columns, self.attention = (nn.ModuleList() for _ in range(3))
            before = [wide]
            for cell, (branches, count) in enumerate(
                zip(space.branches, space.columns, strict=True)
            ):
                widths = channels[:branches]
                self.transitions.append(modules.TransitionModule(before, widths))
                self.columns.append(nn.ModuleList(column(cell, i, widths) for i in range(count)))
                self.attention.append(nn.ModuleList(attention(cell, b) for b in range(branches)))
                before = widths
            self.fuse = modules.FusionModule(channels, muti_scale_output=False)
            self.head = nn.Conv2d(channels[0], 3, 1, bias=False)
            edges = len(space.modules) * space.edges
            self.logits = [  # not parameters: they have an optimizer of their own
                (1e-3 * torch.randn(rows, width)).requires_grad_()
                for rows, width in ((sum(space.columns), 2), (edges, len(names)))
            ]

        def forward(self, images):
            of_columns, of_edges = (iter(x.softmax(1)) for x in self.logits)
            branches = [self.stem(images)]
            for transition, columns, attention in zip(
                self.transitions, self.columns, self.attention, strict=True
            ):
                branches = transition(branches)
                for column in columns:
                    if derived:
                        branches = column(list(branches))
                        continue
                    # The parallel path overwrites its argument.
                    paths = column.horizontal(list(branches)), column.fuse(branches)
                    share = next(of_columns)
                    branches = [share[0] * a + share[1] * b for a, b in zip(*paths, strict=True)]
                branches = [
                    module(x)
                    if derived
                    else module(x, [next(of_edges) for _ in range(space.edges)])
                    for module, x in zip(attention, branches, strict=True)
                ]
            return self.head(self.fuse(branches)[0])

    return Network()


def make_losses() -> tuple[Callable, Callable]:
    """External and internal loss of (12, 3, H, W) and (4, 3, H, W); entropy of the logits."""
    import torch
    from torch.nn import functional

    kernel = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    window = kernel.expand(3, 1, 11, 11).contiguous()

    def blurred(x):
        return functional.conv2d(x, window, padding=5, groups=3)

    def ssim(x, y):
        mean_x, mean_y = blurred(x), blurred(y)
        of_x, of_y, both = (
            blurred(a) - b
            for a, b in ((x * x, mean_x**2), (y * y, mean_y**2), (x * y, mean_x * mean_y))
        )
        light = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        return (light * (2 * both + 9e-4) / (of_x + of_y + 9e-4)).mean()

    def restoration(outputs, clean):
        versions = outputs.reshape(SCENES, VERSIONS, *outputs.shape[1:])
        targets = clean[:, None].expand_as(versions)
        down, across = (versions.diff(dim=axis).square().mean() for axis in (3, 4))
        apart = (versions[:, i] - versions[:, j] for i in range(VERSIONS) for j in range(i))
        return (
            VERSIONS * (versions - targets).square().mean()
            + VERSIONS * (1 - ssim(outputs, targets.flatten(0, 1)))
            + 1e-4 * 2 * (down + across)
            + sum(x.square().mean() for x in apart)
        )

    def entropy(logits):
        shares = (x.softmax(1) for x in logits)
        return 0.01 * sum(-(p * p.log10() + (1 - p) * (1 - p).log10()).mean() for p in shares)

    return restoration, entropy


def make_step(modules: Any, what: str, space: SearchSpace) -> Callable[[], Any]:
    """The step of a case, with the optimizers of the released code."""
    import torch

    torch.manual_seed(0)
    network = build(modules, space, derived=what in ("train", "inference"))
    if what == "inference":
        network.eval()
        picture = torch.rand(1, 3, *PICTURE)

        def restore():
            with torch.no_grad():
                return network(picture)

        return restore

    restoration, entropy = make_losses()
    weights, logits = list(network.parameters()), network.logits
    batches = [
        (torch.rand(SCENES * VERSIONS, 3, SIDE, SIDE), torch.rand(SCENES, 3, SIDE, SIDE))
        for _ in range(2)
    ]

    def loss(batch):
        return restoration(network(batch[0]), batch[1])

    if what == "train":
        optimizer = torch.optim.Adam(weights, 1e-3)

        def train():
            optimizer.zero_grad()
            loss(batches[0]).backward()
            optimizer.step()

        return train

    of_weights = torch.optim.SGD(weights, 2e-3, momentum=0.9, weight_decay=3e-4)
    of_logits = torch.optim.Adam(logits, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def first_order():
        (loss(batches[1]) + entropy(logits)).backward()

    def finite_difference(xi=2e-3):
        """Liu et al., "DARTS", ICLR 2019, equations 7 and 8."""
        before = [w.detach().clone() for w in weights]

        def move(origin, scale, direction):
            with torch.no_grad():
                for w, o, d in zip(weights, origin, direction, strict=True):
                    w.copy_(o if d is None else o + scale * d)

        def gradients(value, by):
            return torch.autograd.grad(value, by, allow_unused=True)

        move(before, -xi, gradients(loss(batches[0]), weights))
        both = gradients(loss(batches[1]) + entropy(logits), logits + weights)
        direct, vector = both[: len(logits)], both[len(logits) :]
        norm = torch.cat([v.flatten() for v in vector if v is not None]).norm()
        epsilon = 0.01 / norm.item()
        sides = []
        for sign in (1, -1):
            move(before, sign * epsilon, vector)
            sides.append(gradients(loss(batches[0]), logits))
        move(before, 0, vector)
        for x, d, up, down in zip(logits, direct, *sides, strict=True):
            x.grad = d - xi * (up - down) / (2 * epsilon)

    hypergradient = {"first_order": first_order, "finite_difference": finite_difference}[what]

    def search():
        of_logits.zero_grad()
        hypergradient()
        of_logits.step()
        of_weights.zero_grad()
        loss(batches[0]).backward()
        of_weights.step()

    return search


def measure(folder: pathlib.Path, name: str, runs: int) -> dict[str, Any]:
    """Runs a case in this process.

    Returns:
      'seconds' by run, after two steps; 'peak_gb' by the end of these two; 'torch', its version.
    """
    torch = importlib.import_module("torch")
    sys.path.insert(0, str(folder))
    what, space = CASES[name]
    step = make_step(importlib.import_module("Networks"), what, SearchSpace(**space))
    for _ in range(2):
        step()
    peak, seconds = speed.peak_gb(), []
    for _ in range(runs):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds, "peak_gb": peak, "torch": torch.__version__}


def _measure_apart(folder: pathlib.Path, name: str, runs: int) -> dict[str, Any]:
    """Measures a case in a child process, so that its peak memory is its own."""
    task = {"folder": str(folder), "case": name, "runs": runs}
    try:
        printed = speed.run_apart("benchmarks.released", [str(folder)], task)
    except RuntimeError as error:
        raise UserError(f"{name}: {error}") from None
    measured = json.loads(printed.splitlines()[-1])
    seconds = measured["seconds"]
    return {**measured, "seconds": speed.spread(seconds), "runs": seconds}


def select(folder: pathlib.Path, patterns: Sequence[str]) -> list[str]:
    """Names of the cases that match any of the patterns; all of them without patterns.

    Raises:
      UserError: a pattern matches none, the folder is no checkout, or PyTorch is not installed.
    """
    if not (folder / "Networks.py").is_file():
        raise UserError(f"{folder}: no Networks.py; give a checkout of github.com/lcai-gz/MANAS")
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed: pip install torch")
    return speed.select(patterns, list(CASES))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.released", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=THIS_MACHINE / "released.json")
    options = parser.parse_args(arguments)
    if task := os.environ.get(speed.WORKER):
        task = json.loads(task)
        print(json.dumps(measure(pathlib.Path(task["folder"]), task["case"], task["runs"])))
        return 0

    from manas_jax.workdir import provenance

    try:
        if options.runs < 1:
            raise UserError(f"--runs={options.runs}: give at least 1")
        folder = options.folder.resolve()
        names = select(folder, options.cases)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        cases: dict[str, Mapping[str, Any]] = {}
        record = {"provenance": provenance.describe(), "runs": options.runs, "cases": cases}
        for name in names:
            print(f"{time.strftime('%H:%M:%S')}  {name}", flush=True)
            cases[name] = _measure_apart(folder, name, options.runs)
            write_json(options.out, record)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = [
        [name, speed.ranged(case["seconds"], ".4g"), f"{case['peak_gb']:.2f}"]
        for name, case in cases.items()
    ]
    print(speed.aligned([["case", "s/step (min-max)", "peak GB"], *rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
