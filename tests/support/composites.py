"""Rows for composites of tiny networks, and the way that these are built."""

import torch

from edlm_hf import EDLMForMaskedDiffusion

MASK = 12
NOISY = torch.tensor([[3, 12, 5, 0, 12, 7], [12, 2, 12, 12, 4, 9]])
CLEAN = torch.tensor([[3, 1, 5, 0, 2, 7], [8, 2, 6, 11, 4, 9]])
build = EDLMForMaskedDiffusion.from_components
