"""Rows for composites of tiny networks, and the way that these are built."""

import torch

from edlm_hf import EDLMForMaskedDiffusion

MASK, PAD = 12, 11
NOISY = torch.tensor([[3, 12, 5, 0, 12, 7], [12, 2, 12, 12, 4, 9]])
CLEAN = torch.tensor([[3, 1, 5, 0, 2, 7], [8, 2, 6, 11, 4, 9]])
# Two short rows with a hole each
IDS = torch.tensor([[3, MASK, 4], [5, 6, MASK]])
build = EDLMForMaskedDiffusion.from_components
