"""Detrigger: serve an image classifier that somebody else trained, without its backdoor.

`scan`, `protect` and `load` are the commands' work for Python; see `detrigger.api`.
"""

from detrigger.api import Prediction, Protected, load, protect, scan

__all__ = ["Prediction", "Protected", "load", "protect", "scan"]
__version__ = "0.1.0"
