"""Holding a plan's prediction against the program that the compiler makes of the plan."""

from autopar.verification.check import BACKENDS as BACKENDS
from autopar.verification.check import check as check
from autopar.verification.confirm import compiled_peak as compiled_peak
from autopar.verification.confirm import confirmed as confirmed
from autopar.verification.report import Report as Report
