"""Cyclic garbage collection, put off."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Generator[None]:
    """No cyclic garbage collection meanwhile, as context or decorator.

    Tracing and search make little garbage, and each collection goes through the whole jaxpr again:
    of 80 layers a third of the time of JAX's tracing, two thirds of simplifying, a quarter of the
    search (measured). What is there at the end counts as old, so that the first collection
    afterwards does not go through all of it either.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():  # those are the caller's, and would thaw
                gc.freeze()
                gc.unfreeze()
            gc.enable()
