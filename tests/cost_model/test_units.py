"""Quantities: what is read, what is refused and in which words, what is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.core.errors import ClusterError
from autopar.cost_model.units import format_bytes, format_seconds, parse_bytes, parse_quantity


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (14, 14),
        (1.5e3, 1500),
        ("14GiB", 14 * 2**30),
        ("14 GB", 14 * 10**9),
        ("0.5 TiB", 2**39),
        ("1_000 B", 1000),
        ("2e3bytes", 2000),
        ("7", 7),
    ],
)
def test_bytes(text: int | float | str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("14 GiBs", r"memory: unknown unit 'GiBs' in '14 GiBs'; did you mean 'GiB'\?"),
        ("lots", "memory: 'lots' is not a quantity; write e.g. '14GiB'"),
        ("", "memory: '' is not a quantity"),
        ("1.2.3 GB", "memory: '1.2.3' is not a number"),
        ("-1 GB", "memory: '-1 GB' is negative or not finite"),
        (float("nan"), "memory: nan is negative or not finite"),
        (0, "memory: 0 is no memory at all"),
        (True, "memory: True is not a quantity"),
    ],
)
def test_bad_bytes(text: int | float | str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        parse_bytes(text)


def test_rates_and_times() -> None:
    assert parse_quantity("400 Gb/s", "bytes/s", "link") == 50e9
    assert parse_quantity("45 GB/s", "bytes/s", "link") == 45e9
    assert parse_quantity("197 TFLOP/s", "FLOP/s", "chip") == 197e12
    assert parse_quantity("20 us", "s", "latency") == pytest.approx(20e-6)
    with pytest.raises(ClusterError, match=r"link: unknown unit 'GB' .*'GB/s'"):
        parse_quantity("45 GB", "bytes/s", "link")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (2**30 - 1, "1.00 GiB"),
        (3 * 2**39, "1.50 TiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (1.5, "1.50 s"), (0.0233, "23.3 ms"), (4.2e-8, "42.0 ns"), (float("inf"), "inf")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.integers(1, 2**60))
def test_format_bytes_is_close_and_readable(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=6e-3)
