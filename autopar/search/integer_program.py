"""A mixed integer program for HiGHS, through scipy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Generator
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from autopar.search.network import FORBIDDEN, IntArray

HIGHS_TICKS = 1e3
"""Units of cost in one of HiGHS's objective (a microsecond). It takes objectives within 1e-6 of
each other for equal, so one tick must be well above that."""


def solved(*args: Any, **options: Any) -> Any:
    """``scipy.optimize.milp`` of the same arguments, which prints nothing."""
    with _silenced():
        return milp(*args, **options)


@contextlib.contextmanager
def _silenced() -> Generator[None]:
    """HiGHS 1.12 prints a line to stdout now and then, whatever it is told (its issue 2783)."""
    try:
        c_library = ctypes.CDLL(None)
        sys.stdout.flush()
        c_library.fflush(None)
        nowhere, stdout = os.open(os.devnull, os.O_WRONLY), os.dup(1)
    except (OSError, TypeError, AttributeError, ValueError):  # no C library by that name, no stdout
        yield
        return
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        c_library.fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)


class IntegerProgram:
    """Rows and columns of a mixed integer program, gathered in order."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self.integer: list[bool] = []
        self.entries: list[tuple[int, int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def columns(self, costs: IntArray, integer: bool) -> int:
        start = len(self.costs)
        self.costs.extend(costs.tolist())
        self.integer.extend([integer] * len(costs))
        return start

    def row(self, terms: list[tuple[int, float]], low: float, high: float) -> None:
        self.entries.extend((len(self.low), column, value) for column, value in terms)
        self.low.append(low)
        self.high.append(high)

    def solve(self, seconds: float) -> Any:
        costs = np.array(self.costs)
        allowed = costs < FORBIDDEN / 2
        rows, cols, values = zip(*self.entries, strict=True)
        matrix = coo_array((values, (rows, cols)), shape=(len(self.low), len(costs)))
        upper: Any = np.where(allowed, 1.0, 0.0)
        low: Any = np.array(self.low)
        high: Any = np.array(self.high)
        return solved(
            np.where(allowed, costs, 0.0) / HIGHS_TICKS,
            integrality=np.array(self.integer, int),
            bounds=Bounds(0.0, upper),
            constraints=LinearConstraint(matrix.tocsc(), low, high),
            options={"time_limit": float(seconds), "mip_rel_gap": 0.0},
        )
