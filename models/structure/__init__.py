"""The structural look at a suspect's graph: logic that is not part of the weights. Imports no torch."""

from detrigger.models.structure.look import Finding, look

__all__ = ["Finding", "look"]
