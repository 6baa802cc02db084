"""Runtime: plans carried out on devices."""

from autopar.runtime.step import OtherArguments as OtherArguments
from autopar.runtime.step import PlannedStep as PlannedStep
from autopar.runtime.step import check_backend as check_backend
from autopar.runtime.step import device_mesh as device_mesh
