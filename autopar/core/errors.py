"""The exceptions autopar raises.

Every message says what was wrong, where, and what to do about it; ``AutoparError`` catches all.
"""


class AutoparError(Exception):
    """Base class of every error autopar raises on purpose."""


class TraceError(AutoparError):
    """The step could not be traced to a jaxpr (data-dependent control flow, bad arguments)."""


class RuleError(AutoparError):
    """A sharding rule is inconsistent with the equation it describes, or registered twice."""


class ClusterError(AutoparError):
    """A cluster or mesh description is wrong: unknown preset, bad unit, wrong size."""


class InfeasibleError(AutoparError):
    """No plan satisfies the request.

    Attributes:
      least_bytes: the smallest peak memory per device any plan found needs, or ``None`` if unknown.
      heaviest: the largest values at that peak, by name and size; empty if unknown.
    """

    def __init__(self, message: str, least_bytes: int | None = None, heaviest: str = ""):
        super().__init__(message)
        self.least_bytes = least_bytes
        self.heaviest = heaviest


class PinError(AutoparError):
    """A pin names nothing, contradicts another pin, or cannot be carried out."""


class PlanError(AutoparError):
    """A plan file is damaged, of another schema, or made for another step or cluster."""


class OptionError(AutoparError):
    """An option has a value autopar does not offer."""


class LoweringError(AutoparError):
    """A plan asks for something that the chosen backend cannot carry out."""


class FallbackWarning(UserWarning):
    """Operations of a step have no sharding rule: every device does the whole of them."""
