"""An interpreter that has torch and transformers but neither this package nor, unless told otherwise, a network."""

import os
import subprocess
import sys
from pathlib import Path


class BarePython:
    """Runs scripts with `home` as working folder and HF_HOME below it. Site-packages come without this package."""

    def __init__(self, home: Path):
        self.home = home
        self.site = home / "site"
        self.site.mkdir()
        for folder in map(Path, sys.path):
            for entry in folder.iterdir() if folder.name == "site-packages" else ():
                link = self.site / entry.name
                if "edlm" not in entry.name and entry.suffix != ".pth" and not link.is_symlink():
                    link.symlink_to(entry)

    def __call__(self, script: str, *arguments, **environment: str) -> str:
        """Standard output of the script. Its errors are those of the test."""
        kept = "PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"
        keep = {name: os.environ[name] for name in kept if name in os.environ}
        here = {"HF_HOME": str(self.home / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(self.site)}
        command = [sys.executable, "-S", "-c", script, *map(str, arguments)]
        environment = keep | here | environment
        result = subprocess.run(command, env=environment, cwd=self.home, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-4000:]
        return result.stdout
