"""Tells our cards, which a newer one may replace, from cards with words of a person, which stay.

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
    """Add a last line to a card that shows whether somebody has edited it since."""
    # An old signature would make the checksum depend on how often a card was signed
    text = SIGNATURE.sub("", text).rstrip("\n") + "\n"
    return f"{text}\n<!-- edlm-hf wrote this card: {digest(text)} -->\n"


def digest(text: str) -> str:
    """Return the checksum of a card: 16 hexadecimal digits."""
    # Line ends at the end of a file, which some editors add, are not an edit
    content = text.strip().encode()
    return hashlib.sha256(content).hexdigest()[:16]


def is_untouched(text: str) -> bool:
    """Whether a card is ours, or a template in which every blank is still open.

    Nobody's words are lost where such a card is replaced.
    """
    signature = SIGNATURE.search(text)
    if signature is not None:
        return signature[1] == digest(text[: signature.start()])

    # Somebody who writes into a template fills at least one of its blanks
    template = Path(ModelCard.default_template_path).read_text(encoding="utf-8")
    return text.count(BLANK) == template.count(BLANK)


def replaces(new: str, old: str | None) -> bool:
    """Whether a `new` card may replace the `old` one.

    It may where there is no old one, or nobody has edited it and the new one has no more gaps.
    """
    if old is None:
        return True

    # A push from a folder that knows less must not empty the card of an earlier one
    gaps_in_new = new.count(UNKNOWN)
    gaps_in_old = old.count(UNKNOWN) + old.count(BLANK)
    return is_untouched(old) and gaps_in_new <= gaps_in_old


__all__ = ["BLANK", "UNKNOWN", "is_untouched", "replaces", "sign"]
