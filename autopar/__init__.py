"""autopar: automatic parallelization for JAX.

Decorate a training step with ``parallelize``, or plan one with ``plan`` for a cluster that need not
be at hand, carry the plan out with ``apply``, and hold it against the compiler with ``verify``.
"""

from importlib.metadata import version

from autopar.api import apply as apply
from autopar.api import parallelize as parallelize
from autopar.api import plan as plan
from autopar.api import verify as verify
from autopar.core.errors import AutoparError as AutoparError
from autopar.core.errors import FallbackWarning as FallbackWarning
from autopar.core.mesh import MeshSpec as MeshSpec
from autopar.core.plan import Plan as Plan
from autopar.cost_model import Cluster as Cluster
from autopar.parallelized import Parallelized as Parallelized
from autopar.passes.trace import trace as trace
from autopar.verification import Report as Report

__version__ = version("autopar")
