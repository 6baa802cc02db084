"""The command line: a thin layer over the public functions."""

from autopar.cli.app import app as app
from autopar.cli.app import main as main
