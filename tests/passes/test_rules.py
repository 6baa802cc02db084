"""Every rule means what it says: the parts, put together, are the whole."""

from pathlib import Path

import cases_elementwise
import cases_indexing
import cases_layout
import cases_products
import pytest
from emulation import Case, check, strategies

from autopar.core.layout import Partial, Placement, Split
from autopar.passes.rules import RULES, AxisStrategy

CASES: list[Case] = [
    *cases_elementwise.CASES,
    *cases_indexing.CASES,
    *cases_layout.CASES,
    *cases_products.CASES,
]
GOLDEN = Path(__file__).parent / "golden_rules.txt"


def _show(strategy: AxisStrategy) -> str:
    ins = ",".join(map(str, strategy.operands))
    return f"{ins}->{','.join(map(str, strategy.results))}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "strategy" in metafunc.fixturenames:
        pairs = [(case, strategy) for case in CASES for strategy in strategies(case)]
        ids = [f"{case.name}:{_show(strategy)}" for case, strategy in pairs]
        metafunc.parametrize(("case", "strategy"), pairs, ids=ids)


def test_parts_make_the_whole(case: Case, strategy: AxisStrategy) -> None:
    check(case, strategy)


def test_every_primitive_has_a_case() -> None:
    assert sorted(RULES) == sorted({case.primitive for case in CASES} | {"reshard"})


def test_golden() -> None:
    """One line a case. To accept a change: write ``lines`` to the file, and read the difference."""
    lines = "".join(f"{line}\n" for line in sorted(f"{case.name}: {case.rule()}" for case in CASES))
    assert lines == GOLDEN.read_text()


