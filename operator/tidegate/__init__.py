"""Tidegate: serverless model inference on Kubernetes."""

from importlib.metadata import version

__version__ = version("tidegate")
