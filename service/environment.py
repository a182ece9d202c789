"""Variables of the environment that are not what they look like: slips of the pen, and Kubernetes' own.

Kubernetes sets, for a Service named detrigger, `DETRIGGER_PORT=tcp://10.0.0.1:8000` and more. They
harm nothing. A name that is nearly a setting's would leave that setting at its default in silence, so it is refused.
"""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches

from detrigger.models.errors import BadInput

PREFIX = "DETRIGGER_"
# Of compose, and of the demo, the tests and the benchmarks.
_COMPOSE = frozenset({"CPUS", "INPUT", "JOB_CPUS", "JOB_MEMORY", "MEMORY", "TARGET"})
_OURS = _COMPOSE | {"DEMO_EXIT", "OFFICIAL", "STORES", "TEST_KILLS", "ZOO"}
_KUBERNETES = re.compile(
    r"(.+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)", re.ASCII
)
_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*", re.ASCII)
_ALIKE = 0.8


def of_kubernetes(name: str, value: object, environment: Mapping[str, str]) -> bool:
    """Whether the value of a setting is the address that Kubernetes put into the environment."""
    return (
        isinstance(value, str)
        and _ADDRESS.fullmatch(value) is not None
        and environment.get(PREFIX + name.upper()) == value
    )


def check_names(known: Collection[str], environment: Mapping[str, str]) -> None:
    """Refuse a variable that is nearly a setting.

    Args:
        known: the names of all settings, in lower case.
        environment: the variables.

    Raises:
        BadInput: names the variable and the setting that was meant; never shows a value.
    """
    names = {name.upper() for name in known}
    for variable in environment:
        prefix, underscore, name = variable.upper().partition("_")
        if not underscore or name in _OURS:
            continue
        if prefix == PREFIX[:-1]:
            if name in names or _KUBERNETES.fullmatch(name):
                continue
            meant = get_close_matches(name, names, 1, _ALIKE)
        else:
            meant = [name] if name in names and get_close_matches(prefix, [PREFIX[:-1]], 1, _ALIKE) else []
        if meant:
            raise BadInput(f"{variable} is no setting; was {PREFIX}{meant[0]} meant? Rename or unset it")
