"""Pages from the templates beside this file: self-contained, and every text escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def page(template: str, **values: Any) -> str:
    """A page as text; ``values`` that a template asks for and does not get are a defect."""
    environment = Environment(
        loader=PackageLoader("detrigger.offline.jobs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
