"""What every choice costs: seconds of equations and layout changes, bytes of device memory.

Reads the jaxpr and the cluster, never the search. All values are frozen, all answers deterministic.
"""

from autopar.cost_model.cluster import Cluster as Cluster
from autopar.cost_model.cluster import parse_cluster as parse_cluster
from autopar.cost_model.collectives import collective_seconds as collective_seconds
from autopar.cost_model.collectives import collective_wire_bytes as collective_wire_bytes
from autopar.cost_model.compute import equation_seconds as equation_seconds
from autopar.cost_model.fusion import FusionBorders as FusionBorders
from autopar.cost_model.fusion import fusion_borders as fusion_borders
from autopar.cost_model.hardware import Chip as Chip
from autopar.cost_model.hardware import Level as Level
from autopar.cost_model.hardware import Link as Link
from autopar.cost_model.memory import liveness as liveness
from autopar.cost_model.presets import PRESETS as PRESETS
from autopar.cost_model.reshard import Collective as Collective
from autopar.cost_model.reshard import Resharder as Resharder
from autopar.cost_model.timeline import CATEGORIES as CATEGORIES
from autopar.cost_model.timeline import Buffer as Buffer
from autopar.cost_model.timeline import Timeline as Timeline
from autopar.cost_model.units import format_bytes as format_bytes
from autopar.cost_model.units import format_seconds as format_seconds
from autopar.cost_model.units import parse_bytes as parse_bytes
from autopar.cost_model.work import Work as Work
from autopar.cost_model.work import flops as flops
from autopar.cost_model.work import work as work
