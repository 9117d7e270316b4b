"""Measurements that compare this package with the published method."""
