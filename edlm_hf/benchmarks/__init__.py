"""Measurements of this package beside the published method, and of samplers beside each other.

Three commands, each with its settings, measurements and page: `quality*.py`, `samplers*.py` and
`speed*.py`. The first two share `study.py`. The third one compares with `published.py`.
"""
