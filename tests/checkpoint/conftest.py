"""Makes the development-only training package importable: it is on no installed path on purpose."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "checkpoints" / "training"))
