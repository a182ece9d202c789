"""A scan's result as SARIF 2.1.0, the format in which code hosts show what a check found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detrigger import __version__

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
RULES = {
    "graph-logic": "The graph decides on the answer by logic of its own, which is no part of the weights.",
    "backdoor": "A trigger changes the answer far too cheaply.",
    "inconclusive": "The scan cannot tell whether the classifier has a backdoor.",
}


def sarif(scan: dict[str, Any], model: Path) -> dict[str, Any]:
    """The log of one scan; ``scan`` is the object of ``detrigger scan --json``. A clean verdict has no results."""
    results = [_logic(row, model) for row in scan["logic"]]
    classes = scan["classes"]
    if scan["verdict"] == "backdoored":
        found = [sign for sign in scan["evidence"] if sign["gap"] >= scan["strong_gap"]]
        targets = sorted({sign["target"] for sign in found})
        for target in targets:
            own = [sign for sign in found if sign["target"] == target]
            label = classes[target] if target >= 0 else "any other class"
            families = ", ".join(f"{s['family']} ({s['gap']:.1f} bits)" for s in own)
            text = f"A trigger leads to {label!r} far too cheaply: {families}."
            results.append(_result("backdoor", "error", text, model, {"target": target}))
        if not results:
            results.append(_result("backdoor", "error", "The classifier is backdoored.", model, {}))
    if scan["verdict"] == "inconclusive" and not results:
        text = scan["reason"] or RULES["inconclusive"]
        results.append(_result("inconclusive", "warning", text, model, {}))
    rules = [{"id": name, "shortDescription": {"text": text}} for name, text in RULES.items()]
    driver = {"name": "Detrigger", "semanticVersion": __version__, "rules": rules}
    properties = {
        "verdict": scan["verdict"],
        "targetLabels": list(scan["target_labels"]),
        "sha256": scan["suspect"],
    }
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results, "properties": properties}],
    }


def _logic(row: dict[str, Any], model: Path) -> dict[str, Any]:
    text = f"Node {row['node']!r}: {row['why']}."
    properties = {"node": row["node"], "operator": row["op"], "target": row["target"], "sign": row["sign"]}
    return _result("graph-logic", "error", text, model, properties)


def _result(rule: str, level: str, text: str, model: Path, properties: dict[str, Any]) -> dict[str, Any]:
    place: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": _uri(model)}}}
    if node := properties.get("node"):
        place["logicalLocations"] = [{"name": node, "kind": "element"}]
    return {
        "ruleId": rule,
        "level": level,
        "message": {"text": text},
        "locations": [place],
        "properties": properties,
    }


def _uri(model: Path) -> str:
    """A relative path as it is, so that code hosts find the file; of an absolute one the name alone."""
    from urllib.parse import quote

    return quote(model.name if model.is_absolute() else model.as_posix())
