"""What the programs of this folder share."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from autopar.core.errors import AutoparError
from autopar.cost_model import parse_cluster
from autopar.verification.topology import topology_devices


def write_json(path: Path, data: object) -> None:
    """Writes plain data to a file, whose folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")


def require_tpu_compiler() -> None:
    """Ends the program with one line, exit code 1, where nothing can be compiled for a TPU."""
    try:
        topology_devices(parse_cluster("tpu-v5e:2x2"))
    except AutoparError as error:
        sys.exit(f"{sys.argv[0]}: {error}")
