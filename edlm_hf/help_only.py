"""Whether this process is the program `edlm` that shows a help: then nothing heavy is imported, and it is quick.

A wrong answer, for an option whose value is "--help", costs nothing: every command imports `edlm_hf.registration`
before it runs.
"""

import os
import sys
from pathlib import Path

PROGRAMS = ("edlm", "edlm.exe")
SHOWN_AT_ONCE = ("--help", "--version", "--install-completion", "--show-completion")


def is_wanted() -> bool:
    """Whether the arguments ask for a help, the version or the completion of a line."""
    if not sys.argv or Path(sys.argv[0]).name not in PROGRAMS:
        return False
    arguments = sys.argv[1:]
    is_completion = "_EDLM_COMPLETE" in os.environ
    return is_completion or not arguments or any(argument in SHOWN_AT_ONCE for argument in arguments)
