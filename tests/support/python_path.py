"""What a process started by a test can import: all that the test can, but no code of checkpoints that others loaded."""

import os
import sys
from pathlib import Path


def python_path() -> str:
    """PYTHONPATH. A folder of transformers for code that travels is put on sys.path where such code was loaded."""
    return os.pathsep.join(path for path in sys.path if path and not Path(path, "transformers_modules").is_dir())
