"""Writes docs/operations.md from the registered rules and the golden file of their tests."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from autopar.passes.lowering.local.site import LOCAL
from autopar.passes.rules import FAMILIES, RULES
from autopar.passes.rules.control_flow import BODIES
from autopar.passes.simplify import CALLS

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "passes" / "golden_rules.txt"
TARGET = ROOT / "docs" / "operations.md"

HEAD = """\
# Operations

Written by `docs/generate_operations.py` (`make docs`); do not edit.

{count} primitives have a rule: what a mesh axis may do at an equation. An example in factor
notation, from the tests:

```
dot_general: ([i, k], [k, j]) -> [i, j] {{i=4, j=2, k=6}} sum={{k}} linear={{0}} linear={{1}}
```

Operands, then results, with one loop factor per dimension; `_` is a dimension that is not cut. A
mesh axis may be given to one factor whose extent it divides: operands and results are then split
along the dimensions that name it, and what does not name it is broadcast. `sum={{k}}`: to cut `k`
leaves the result a partial sum, `P`; `max`, `min`, `mul`, `and`, `or` likewise. `linear={{0}}`: a
partial sum in operand 0 passes to the result, the other operands being broadcast;
`linear={{0, 1}}`: only if both are partial; `linear[max]`: a partial maximum. `join={{k:0}}`: while
`k` is cut, operand 0 must itself be partial. Every operation may also be replicated. The tables
show the reductions and linearity in columns of their own.

Where the last two columns are empty, the operation neither reduces nor commutes with a reduction:
partial values are reduced before it. Linearity depends on dtypes; `/` marks further examples of a
primitive.
"""

TAIL = """\
## Without a rule

| primitives | what becomes of them |
|---|---|
| {regions} | planned in place: the equations of their bodies join the search |
| {calls} | inlined before planning; shardings given to a `jit` become constraints |
| `shard_map` | laid as its specs say, on axes of the plan's mesh |
| any other, as `pallas_call` | replicated, named in a warning, counted in `plan.fallbacks` |

Of the 175 primitives that JAX 0.10 exports (`jax.extend.core.primitives`), these alone are any
other. But for the last, they have nothing to split, or no place in a step:

| primitives | why they have no rule |
|---|---|
{unruled}

Under `backend="shard_map"` an operation can run on parts if `passes/lowering/local` says how. Of
those above it does not for: {uncut}.
"""


UNRULED = {
    "tokens, without a dimension to split": ("after_all", "create_token", "empty2"),
    "along named axes: only within a `shard_map`, which is run as it stands": (
        *("all_gather", "all_to_all", "axis_index", "pmax", "pmin", "ppermute", "psum"),
        "ragged_all_to_all",
    ),
    "mutable references, which steps may not use": ("get", "swap"),
    "of differentiation alone; no finished program has it": ("custom_lin",),
    "a window's selection by any function; JAX's own programs use `select_and_scatter_add`": (
        "select_and_scatter",
    ),
}
"""Why a primitive that JAX exports needs no rule, or has none."""


def cases() -> dict[str, dict[str, str]]:
    """Primitive to its cases in the golden file: name (``dot_general/batched``) to notation."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for line in GOLDEN.read_text(encoding="utf-8").splitlines():
        name, _, notation = line.partition(": ")
        found[name.partition("/")[0]][name] = notation
    return found


def text() -> str:
    """The whole document."""
    known = cases()
    regions = names(name for name in BODIES if name not in CALLS)
    calls = names((*CALLS, "custom_linear_solve"))
    uncut = names(name for name in RULES if name not in LOCAL) or "none"
    parts = [HEAD.format(count=len(RULES))]
    for family in FAMILIES:
        rules = [name for name, rule in RULES.items() if rule.__module__ == family.__name__]
        parts.append(
            "\n".join(section(family.__name__, inspect.getdoc(family) or "", rules, known))
        )
    unruled = "\n".join(f"| {names(found)} | {why} |" for why, found in UNRULED.items())
    parts.append(TAIL.format(regions=regions, calls=calls, uncut=uncut, unruled=unruled))
    return "\n".join(parts)


def section(
    module: str, doc: str, primitives: list[str], known: dict[str, dict[str, str]]
) -> Iterator[str]:
    """One family: its table, and what its rules say of themselves."""
    title, colon, rest = doc.splitlines()[0].rstrip(".").partition(": ")
    if not colon:
        title, rest = module.rpartition(".")[2].replace("_", " "), title
    yield f"## {title[:1].upper()}{title[1:]}\n"
    file = f"{module.removeprefix('autopar.').replace('.', '/')}.py"
    yield f"{rest[:1].upper()}{rest[1:]}. [`{file}`](../{file})\n"
    yield "| operation | factors | cutting leaves | partial values that pass |"
    yield "|---|---|---|---|"
    for shared, examples in grouped(primitives, known):
        for name, notation in sorted(examples.items(), key=lambda case: "/" in case[0]):
            label = names(shared) if name in shared else f"`{name}`"
            yield f"| {label} | `{factors(notation)}` | {leaves(notation)} | {passes(notation)} |"
    documented = [
        rule for rule in dict.fromkeys(RULES[name] for name in primitives) if rule.__doc__
    ]
    if documented:
        yield ""
    for rule in documented:
        users = names(name for name in primitives if RULES[name] is rule)
        yield f"* {users}: {paragraph(rule.__doc__ or '')}"
    yield ""


def grouped(
    primitives: list[str], known: dict[str, dict[str, str]]
) -> list[tuple[list[str], dict[str, str]]]:
    """Primitives of one rule whose only example is the same share a row."""
    groups: dict[object, tuple[list[str], dict[str, str]]] = {}
    for name in sorted(primitives, key=lambda name: name not in known):
        rule = RULES[name]
        examples = known.get(name)
        if examples is None:  # no example of its own: that of the first primitive of its rule
            next(shared for shared, _ in groups.values() if RULES[shared[0]] is rule).append(name)
            continue
        alone = list(examples) == [name]
        key = (rule, examples[name]) if alone else name
        groups.setdefault(key, ([], examples))[0].append(name)
    return list(groups.values())


def names(primitives: Iterable[str]) -> str:
    """As code, in a list."""
    return ", ".join(f"`{name}`" for name in primitives)


def factors(notation: str) -> str:
    """The notation without what the other columns say."""
    return re.sub(r" (?:sum|max|min|mul|and|or|linear(?:\[\w+\])?)=\{[^}]*\}", "", notation)


def leaves(notation: str) -> str:
    """Which partial values result from cutting which factors."""
    found = re.findall(r" (sum|max|min|mul|and|or)=\{([^}]*)\}", notation)
    return "; ".join(f"{placement(op)} by {cut}" for op, cut in found)


def passes(notation: str) -> str:
    """Which partial values pass, in which operands."""
    found = re.findall(r" linear(?:\[(\w+)\])?=\{([^}]*)\}", notation)
    by_operands: dict[str, list[str]] = defaultdict(list)
    for op, operands in found:
        by_operands[operands].append(placement(op or "sum"))
    return "; ".join(
        f"{', '.join(ops)} in {operands.replace(', ', ' and ')}"
        for operands, ops in by_operands.items()
    )


def placement(op: str) -> str:
    """A partial placement as layouts are written."""
    return "P" if op == "sum" else f"P({op})"


def paragraph(doc: str) -> str:
    """A docstring on one line, as Markdown."""
    return " ".join(inspect.cleandoc(doc).split()).replace("``", "`")


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
