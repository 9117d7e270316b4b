"""`edlm_hf.modeling` in a clone, where it is the folder modeling/ beside edlm_hf/ and not inside of it.

Python that is started in a clone takes its folder edlm_hf/ before an installed package. So this
module is imported first.
"""

from pathlib import Path

import edlm_hf

PACKAGE = Path(__file__).parent

if not (PACKAGE / "modeling").is_dir():
    edlm_hf.__path__.append(str(PACKAGE.parent))
