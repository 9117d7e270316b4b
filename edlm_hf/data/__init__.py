"""Corpora by name, by Hub id or from local files, and the blocks of tokens that models are trained and evaluated on."""

from edlm_hf.data.block_rules import BlockRule, block_rule, blocks_for
from edlm_hf.data.blocks import to_blocks
from edlm_hf.data.corpus import load_corpus
from edlm_hf.data.protocols import PROTOCOLS, Protocol
from edlm_hf.data.windows import document_windows

__all__ = [
    "PROTOCOLS",
    "BlockRule",
    "Protocol",
    "block_rule",
    "blocks_for",
    "document_windows",
    "load_corpus",
    "to_blocks",
]
