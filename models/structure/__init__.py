"""The structural look at a suspect's graph: logic that is not part of the weights. Imports no torch."""

from detrigger.models.structure.cut import cut
from detrigger.models.structure.look import Finding, look
from detrigger.models.structure.trigger import Sign

__all__ = ["Finding", "Sign", "cut", "look"]
