"""What each primitive computes on the parts that one device holds."""

from autopar.passes.lowering.local import conv as _conv
from autopar.passes.lowering.local import indexing as _indexing
from autopar.passes.lowering.local import opaque as _opaque
from autopar.passes.lowering.local import random as _random
from autopar.passes.lowering.local import shapes as _shapes
from autopar.passes.lowering.local import unchanged as _unchanged
from autopar.passes.lowering.local.site import LOCAL as LOCAL
from autopar.passes.lowering.local.site import Site as Site
from autopar.passes.lowering.local.site import bind as bind
from autopar.passes.lowering.local.site import localise as localise

FAMILIES = (_conv, _indexing, _opaque, _random, _shapes, _unchanged)
"""The modules that fill ``LOCAL``."""
