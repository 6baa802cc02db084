"""What a decorated step costs a call, beside ``jax.jit`` of the same step with the same shardings.

    python benchmarks/overhead.py [--quick] [--json FILE]

The steps of a few arrays do next to no work, so the time to dispatch them is all there is; the last
one is the smallest real training step. Both run in turns in the same process, so the ratio of
their medians is what to compare between machines; microseconds are this machine's. It runs on
eight emulated CPU devices.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from _common import write_json
from rich.console import Console
from rich.table import Table

import autopar
from autopar.models import preset


class Program(NamedTuple):
    """A step and its arguments."""

    step: Callable[..., Any]
    state: Any
    batch: Any


def arrays(count: int) -> Program:
    """Next to no work on ``count`` small arrays."""

    def step(state: list[jax.Array], batch: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        return [x + batch for x in state], batch[0]

    return Program(step, [jnp.zeros((8,))] * count, jnp.ones((8,)))


def training() -> Program:
    """The smallest of the presets, with AdamW."""
    workload = preset("mlp:tiny")
    batch = next(workload.batches(seed=0))
    state = workload.init(jax.random.key(0), batch)
    return Program(workload.train_step, state, batch)


@dataclass(frozen=True)
class Case:
    """A program on a number of devices."""

    name: str
    make: Callable[[], Program]
    devices: int


CASES = (
    Case("4 arrays, 1 device", partial(arrays, 4), 1),
    Case("4 arrays, 8 devices", partial(arrays, 4), 8),
    Case("100 arrays, 1 device", partial(arrays, 100), 1),
    Case("100 arrays, 8 devices", partial(arrays, 100), 8),
    Case("mlp:tiny, 1 device", training, 1),
    Case("mlp:tiny, 8 devices", training, 8),
)
ROUNDS, CALLS = 40, 25


@dataclass(frozen=True)
class Row:
    """Medians over all rounds of the mean time of a call, in seconds; ``ratio`` of each round."""

    name: str
    jit_s: float
    autopar_s: float
    ratio: float
    ratio_low: float
    ratio_high: float


def run(case: Case, rounds: int) -> Row:
    """Times both in turns."""
    devices = jax.devices()[: case.devices]
    cluster = autopar.Cluster.preset("cpu", case.devices)
    step, state, batch = case.make()
    ours = autopar.parallelize(cluster=cluster, devices=devices, mesh=case.devices)(step)
    ins, outs = ours.shardings(state, batch)
    by_hand = jax.jit(step, in_shardings=ins, out_shardings=outs, donate_argnums=0)
    batch = jax.device_put(batch, ins[1])
    calls = CALLS if case.make is not training else 3

    def time_call(call: Callable[..., Any], calls: int) -> float:
        """Seconds a call; the last result is waited for, so that no work is left running."""
        now = jax.tree.map(jnp.copy, jax.device_put(state, ins[0]))
        jax.block_until_ready(now)
        began = time.perf_counter()
        for _ in range(calls):
            now, _ = call(now, batch)
        if case.make is training:
            jax.block_until_ready(now)
        took = (time.perf_counter() - began) / calls
        jax.block_until_ready(now)
        return took

    both = (by_hand, ours)
    for call in both:
        time_call(call, 3)
    pairs: list[tuple[float, float]] = []
    for number in range(rounds):
        order = both if number % 2 else both[::-1]
        taken = {call: time_call(call, calls) for call in order}
        pairs.append((taken[by_hand], taken[ours]))
    ratios = statistics.quantiles([b / a for a, b in pairs], n=4)
    jit_s, autopar_s = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Row(case.name, jit_s, autopar_s, ratios[1], ratios[0], ratios[2])


def main() -> None:
    """Runs the cases, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/overhead.json"))
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table("state", "jax.jit", "autopar", "ratio, median", "ratio, quartiles")
    rows: list[Row] = []
    for case in CASES:
        with console.status(case.name):
            row = run(case, ROUNDS // 4 if options.quick else ROUNDS)
        rows.append(row)
        table.add_row(
            *(row.name, f"{row.jit_s * 1e6:.1f} us", f"{row.autopar_s * 1e6:.1f} us"),
            *(f"{row.ratio:.3f}", f"{row.ratio_low:.3f} to {row.ratio_high:.3f}"),
        )
    console.print(table)
    write_json(options.json, [asdict(row) for row in rows])
    console.print(f"written to {options.json}")


if __name__ == "__main__":
    main()
