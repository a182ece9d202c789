"""A state_dict that torch.save wrote (.pth, .pt), read in a process of its own.

The file is a pickle. torch's own reader of weights alone (``weights_only``) takes numbers and a few plain containers
from it and refuses everything else. Should that reader have a hole, it runs where nothing can be reached: the process
gets the file as its standard input, gives back safetensors on its standard output, and can open no further descriptor,
so neither a file nor a socket. Its memory and time are bounded.

    python -P -m detrigger.offline.graph.state_dict < weights.pth > weights.safetensors
"""

from __future__ import annotations

import io
import pickle
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from detrigger.models.errors import BadInput
from detrigger.models.suspect import MAX_BYTES, first_line

MEMORY = 2 << 30
"""Bytes that the reading may take, beside ``MEMORY_FACTOR`` times the file's own."""
MEMORY_FACTOR = 6
SECONDS = 120
HELD_IN = ("state_dict", "model_state_dict", "model")
"""Keys under which a training checkpoint keeps its state_dict."""
WAY_OUT = (
    "load it where that is safe, and save the numbers alone:"
    ' safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in the file by name; BadInput for anything but a state_dict, or a checkpoint that holds one."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadInput(f"the weights {path} are larger than {MAX_BYTES >> 20} MiB")
        with path.open("rb") as file:
            done = subprocess.run(
                [sys.executable, "-P", "-W", "ignore", "-m", __name__],
                stdin=file,
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
    except OSError as error:
        raise BadInput(f"cannot read the weights {path}: {error.strerror or error}") from error
    except subprocess.TimeoutExpired as error:
        raise BadInput(f"the weights {path} cannot be read within {SECONDS} s; {WAY_OUT}") from error
    if done.returncode == 0:
        try:
            return load(done.stdout)
        except SafetensorError as error:  # the process may have been taken over
            raise BadInput(f"the weights {path} were read wrongly: {first_line(error)}; {WAY_OUT}") from error
    said = done.stderr.decode(errors="replace").strip().splitlines()
    why = said[-1] if done.returncode == 1 and said else f"its reader ended with {done.returncode}"
    raise BadInput(f"the weights {path} are no state_dict: {why[:300]}; {WAY_OUT}")


def main() -> int:
    """Standard input to standard output; 1 with a line on standard error where that cannot be done."""
    data = sys.stdin.buffer.read()
    _warm_up()
    _enclose(len(data))
    try:
        sys.stdout.buffer.write(save(_tensors(torch.load(io.BytesIO(data), "cpu", weights_only=True))))
        sys.stdout.buffer.flush()
    except pickle.UnpicklingError:
        why = "it holds objects and not only numbers (a whole pickled module?), and reading those runs code in it"
    except MemoryError:
        why = "it takes too much memory"
    except Exception as error:  # a stranger's bytes: whatever torch raises is a refusal
        why = first_line(error) or type(error).__name__
    else:
        return 0
    sys.stderr.write(f"{why}\n")
    return 1


def _tensors(found: Any) -> dict[str, Tensor]:
    """The state_dict in what was read, each tensor with memory of its own; TypeError or ValueError without one."""
    if not isinstance(found, dict):
        raise TypeError(f"it holds a {type(found).__name__}")
    held = next((found[key] for key in HELD_IN if isinstance(found.get(key), dict)), found)
    odd = next((k for k, v in held.items() if not isinstance(k, str) or not isinstance(v, Tensor)), None)
    if odd is not None or not held:
        raise ValueError(f"its entry {odd!r} is no tensor" if held else "it is empty")
    return {name: tensor.detach().clone().contiguous() for name, tensor in held.items()}


def _warm_up() -> None:
    """Load every module that reading needs, both formats, as nothing can be opened afterwards."""
    for new in (True, False):
        held = io.BytesIO()
        torch.save({"a": torch.zeros(1)}, held, _use_new_zipfile_serialization=new)
        save(_tensors(torch.load(io.BytesIO(held.getvalue()), "cpu", weights_only=True)))
    with suppress(pickle.UnpicklingError, RuntimeError):
        torch.load(io.BytesIO(pickle.dumps(io.BytesIO, 2)), "cpu", weights_only=True)


def _enclose(n_bytes: int) -> None:
    """No further descriptor from now on, and bounded memory and time."""
    torch.set_num_threads(1)
    with suppress(OSError, ValueError):  # a kernel without this bound
        with open("/proc/self/statm") as file:  # noqa: PTH123 - pages of this process
            own = int(file.read().split()[0]) * resource.getpagesize()
        most = own + MEMORY + MEMORY_FACTOR * n_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
