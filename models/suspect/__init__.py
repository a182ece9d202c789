"""Import of a suspect: an ONNX classifier becomes a frozen, differentiable torch.fx module.

No code of the file's author runs: ONNX is data, every operator is looked up in a table, names are sanitised before
they become attributes, and the result is compared with ONNX Runtime before anybody relies on it.

Where to read, in the order of the import:

    file.py        bytes to a checked ``ModelProto``: size limits, weights in a file beside it, local functions
    spec.py        which input is the image and which output the answer
    standard.py    one float image in, (N, K) logits or probabilities out, whatever the file's own heads are
    batch.py       an open batch dimension: as declared, opened node by node, or one image after another
    quantised.py   the float twin of a quantised graph
    convert.py     ONNX to torch.fx: onnx2fx and a small table of our own
    cheap.py       rules that make passes cheap
    cut.py         the feature cut
    network.py     ``Suspect``: what the job works with
    gradient.py    does the gradient say what ONNX Runtime does?
    guard.py       the same in a process of its own first: crashes, endless loops and bombs end there
    importing.py   all of it, with the comparison
    runtime.py     ONNX Runtime, the reference for every comparison
"""

from detrigger.models.suspect.batch import free_batch
from detrigger.models.suspect.file import MAX_BYTES, first_line, read_onnx, whole_file
from detrigger.models.suspect.gradient import GradientCheck, check_gradient
from detrigger.models.suspect.importing import Imported, import_suspect
from detrigger.models.suspect.network import Suspect
from detrigger.models.suspect.runtime import Pixels, onnx_logits, session
from detrigger.models.suspect.spec import TOLERANCE, OnnxSpec, describe

__all__ = [
    "MAX_BYTES",
    "TOLERANCE",
    "GradientCheck",
    "Imported",
    "OnnxSpec",
    "Pixels",
    "Suspect",
    "check_gradient",
    "describe",
    "first_line",
    "free_batch",
    "import_suspect",
    "onnx_logits",
    "read_onnx",
    "session",
    "whole_file",
]
