"""Fleetfoot: a serverless-style, co-located Kubernetes fleet as infrastructure code."""

__version__ = "0.1.0"
