"""Detrigger: serve an image classifier that somebody else trained, without its backdoor."""

__version__ = "0.1.0"
