"""Serves one scikit-learn model over the Open Inference Protocol (V2, REST)."""

__version__ = "0.1.0"
