"""The structural look at a suspect's graph: logic that is not part of the weights. Imports no torch.

look        what is suspected, and what of it is found       (finding: both as records)
levels      which other values a result can have             (bounds: intervals)
sides       values that join late, round the weights
force       what a forced value does to the answers          (run: ONNX Runtime)
trigger     the sign that a decision waits for
cut         the graph without it
graph       dataflow from pixels to logits                   (flatten: bodies written out)
"""

from detrigger.models.structure.cut import cut
from detrigger.models.structure.finding import Finding
from detrigger.models.structure.look import look
from detrigger.models.structure.trigger import Sign

__all__ = ["Finding", "Sign", "cut", "look"]
