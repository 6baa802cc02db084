"""Which values lie in device memory when: a static liveness analysis of one step.

An *instant* is the running of one kernel, in the order of ``schedule``; a loop or branch has an
instant where it starts, those of its body (once, however often it runs), and one where it ends.
Rules, after what XLA:TPU does (measured for the design):

* Only values that ``fusion`` says are written count; views are their root.
* Arguments are there all the time. A result that replaces a donated input is free, if the input is
  dead when it is written; other results stay to the end.
* A value lives from its kernel to its last reader, that instant included: a dying operand and the
  result made from it coexist.
* A ``scan``'s stacked results and carries are allocated when it starts; its body writes them in
  place. A carry's new value coexists with the old one. An initial carry that dies in the loop
  becomes it.
* A narrowing cast of a whole scanned input is hoisted out of the loop: the cast stack is there
  while the loop runs (``scale`` is then the trip count).
* Bodies that run once and always (``remat``) are inlined.
* What only results need that do not become the next step's state, the loss above all, runs in its
  place or last, whichever holds less, on a single device: its f32 logits may outweigh all else.

``Timeline.profile`` adds up any assignment of bytes to variables, in linear time, with numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jax.extend.core import ClosedJaxpr, Jaxpr, Var

from autopar.cost_model.bodies import Bodies
from autopar.cost_model.categories import Categories
from autopar.cost_model.fusion import FusionBorders, fusion_borders
from autopar.cost_model.liveness import Walk
from autopar.cost_model.timeline import Buffer, Timeline


def liveness(
    jaxpr: Jaxpr | ClosedJaxpr,
    in_categories: Sequence[str],
    donated: Sequence[bool],
    ties: Sequence[tuple[int, int]],
    *,
    borders: FusionBorders | None = None,
    bf16_dots: bool = False,
) -> Timeline:
    """The timeline of a step.

    Args:
      jaxpr: the simplified step.
      in_categories: the category of every input.
      donated: whether each input may be overwritten.
      ties: ``(output, input)`` positions: outputs that are the next step's inputs.
      borders: ``fusion_borders(jaxpr)``, if it is at hand.
      bf16_dots: whether f32 values that only matmuls use are stored as bf16 (XLA:TPU).
    """
    top = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    borders = borders or fusion_borders(top)
    in_place: dict[Var, Var] = {}
    for position, source in ties:
        out = top.outvars[position]
        if donated[source] and isinstance(out, Var):
            in_place.setdefault(borders.root(out), top.invars[source])
    inputs = dict(zip(top.invars, in_categories, strict=True))
    outputs = [top.outvars[position] for position, _ in ties]
    lasting = frozenset(borders.root(out) for out in outputs if isinstance(out, Var))
    found: list[tuple[Walk, Timeline]] = []
    bodies = Bodies(borders)
    for order in (None, lasting) if lasting else (None,):
        walk = Walk(bodies, in_place, order)
        walk.body(top, backward=False, tail=False, in_place=in_place)
        found.append((walk, _timeline(walk, top, inputs, bf16_dots)))
    walk, best = min(found, key=lambda one: one[1].peak(one[1].global_bytes())[1])
    return replace(best, instant_of=walk.instants())


def _timeline(walk: Walk, top: Jaxpr, inputs: Mapping[Var, str], bf16_dots: bool) -> Timeline:
    spans = tuple(walk.spans(top))
    category = Categories(walk, inputs, top)
    return Timeline(
        buffers=tuple(
            Buffer(s.var, s.start, s.end, category.of(s), s.scale if bf16_dots else max(1, s.scale))
            for s in spans
        ),
        kernels=tuple(walk.ran),
        instant_of={},
        uses={
            s.var: (walk.first_use.get(s.var, s.start), walk.last_use.get(s.var, s.start))
            for s in spans
        },
        roots={var: walk.resolve(var) for var in (*walk.bodies.borders.roots, *walk.alias)},
    )
