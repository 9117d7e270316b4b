"""Measurements of this package beside the published method, and of samplers beside each other.

Three commands, each with its settings, its measurements and its page: `quality*.py`, `samplers*.py` and `speed*.py`.
`study.py` holds what the first two share, `published.py` the samplers that the third one compares with.
"""
