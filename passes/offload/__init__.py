"""What rests in host memory: state of the optimiser, updated piece by piece, and stacks of loops.

Before: a simplified jaxpr with its donated inputs and ties. ``updates`` finds the work that turns
such state into that of the next step, where it is elementwise; ``stream`` carries it out as a loop
over pieces, each fetched from the host, updated, and written back where it was. So the device holds
a piece at a time: of a plain fetch XLA:TPU makes an asynchronous copy of the whole, which it starts
as early as it can, and the peak *rises* (measured); a loop it leaves where it is. ``stacks`` finds
what loops leave for the backward pass, which is copied out and fetched a trip at a time.
"""

from __future__ import annotations

from autopar.passes.offload.pieces import Pieces as Pieces
from autopar.passes.offload.pieces import pieces as pieces
from autopar.passes.offload.pieces import pieces_under as pieces_under
from autopar.passes.offload.shares import AT_ONCE as AT_ONCE
from autopar.passes.offload.shares import shares as shares
from autopar.passes.offload.stacks import stacks as stacks
from autopar.passes.offload.stream import is_on_host as is_on_host
from autopar.passes.offload.stream import on_device as on_device
from autopar.passes.offload.stream import stream as stream
from autopar.passes.offload.stream import to_host as to_host
from autopar.passes.offload.updates import Update as Update
from autopar.passes.offload.updates import updates as updates
