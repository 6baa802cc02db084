"""Makes the helper module of this folder importable from its tests, and by the program."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
