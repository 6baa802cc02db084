"""Quantities as text."""

import pytest

from autopar.core.text import format_bytes, format_seconds


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (14 * 2**30, "14.0 GiB"),
        (2**40 - 1, "1.00 TiB"),
        (150 * 2**20, "150 MiB"),
    ],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2.5, "2.50 s"),
        (0.9999, "1.00 s"),
        (23.3e-6, "23.3 us"),
        (1e-10, "0.10 ns"),
        (float("inf"), "inf"),
    ],
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text
