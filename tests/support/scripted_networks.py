"""Networks that give chosen distributions, for samplers whose steps are computed by hand."""

import torch
from exact import MASK

# Tokens 0, 1, 2 and the mask, 3. X has the largest c, Y the largest m, Z the least H.
X = (0.55, 0.30, 0.15)  # c = .55, m = .25, H = .975
Y = (0.23, 0.54, 0.23)  # c = .54, m = .31, H = 1.009
Z = (0.00, 0.49, 0.51)  # c = .51, m = .02, H = .693


def always(rows):
    """A network that gives the same distributions (L, 3) whatever it sees. Its mask token is likelier than anything."""
    logits = torch.tensor(rows, dtype=torch.float64).log()
    logits = torch.cat([logits, torch.full((len(rows), 1), 5.0)], dim=1)
    return lambda ids: logits[None]


def in_turn(tables):
    """A network that gives the n-th table at its n-th call, the last one from then on."""
    networks = [always(rows) for rows in tables]
    return lambda ids: networks.pop(0)(ids) if len(networks) > 1 else networks[0](ids)


def sure(*confidences):
    """Rows whose likeliest token, 0, has these probabilities. The others share the rest."""
    return [(c, (1 - c) / 2, (1 - c) / 2) for c in confidences]


def masks(length):
    return torch.full((length,), MASK)
