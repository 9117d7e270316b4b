"""Whose card it is: ours, which a newer one may replace, or one with words of a person, which stays.

The last line of a card of ours has a checksum of everything above it, so that an edit shows.
"""

import hashlib
import re
from pathlib import Path

from huggingface_hub import ModelCard

UNKNOWN = "Not recorded."  # in our cards, where the author has said nothing
BLANK = "[More Information Needed]"  # in the templates of huggingface_hub and peft
SIGNATURE = re.compile(r"\n<!-- edlm-hf wrote this card: ([0-9a-f]{16}) -->\n*\Z")


def sign(text: str) -> str:
    """The card with a last line that shows whether somebody has edited it since."""
    text = SIGNATURE.sub("", text).rstrip("\n") + "\n"
    return f"{text}\n<!-- edlm-hf wrote this card: {digest(text)} -->\n"


def digest(text: str) -> str:
    """The checksum of a card: 16 hexadecimal digits."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def is_untouched(text: str) -> bool:
    """Whether a card is ours, or a template in which every blank is still open: nobody's words would be lost."""
    signature = SIGNATURE.search(text)
    if signature is not None:
        return signature[1] == digest(text[: signature.start()])

    template = Path(ModelCard.default_template_path).read_text(encoding="utf-8")
    return text.count(BLANK) == template.count(BLANK)


def replaces(new: str, old: str | None) -> bool:
    """Whether `new` may take the place of `old`: there is none, or it is untouched and leaves as much unsaid."""
    if old is None:
        return True
    return is_untouched(old) and new.count(UNKNOWN) <= old.count(UNKNOWN) + old.count(BLANK)


__all__ = ["BLANK", "UNKNOWN", "is_untouched", "replaces", "sign"]
