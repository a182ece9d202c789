"""Values that reach the late layers round most of the weights."""

from __future__ import annotations

import numpy as np

from detrigger.models.structure.graph import COMPARING, Graph

BYPASS, LATE = 0.1, 0.5
"""Shares of the weights that a way round them has at most behind it, and the way that it joins at least."""
BENDING = ("Max", "Min", "Where", "PRelu", "Pow", "Mod", "If", "ScatterND", "ScatterElements")
"""Operators by which a value decides on another one."""
Array = np.ndarray


def sides(graph: Graph) -> list[str]:
    """Values that join the way to the logits late, and have few of the weights behind them."""
    before, total = graph.weights_before()
    found = []
    for node in graph.nodes:
        operands = list(dict.fromkeys(graph.operands[node.name]))
        if len(operands) < 2 or total == 0:
            continue
        most = max(before[x] for x in operands)
        bends = node.op_type in BENDING
        for x in operands:
            late = before[x] <= BYPASS * total and most >= LATE * total
            early = bends and before[x] < most
            if (late or early) and x != graph.image and x not in found:
                found.append(x)
    return found


def inside(graph: Graph, side: str) -> list[str]:
    """Truth values and whole numbers that the side value is made of."""
    names, open_names = [], [side]
    seen = {side}
    while open_names and len(seen) < 400:
        name = open_names.pop()
        node = graph.producer.get(name)
        if node is None:
            continue
        if node.op_type in COMPARING and not graph.affine(node):
            names.append(name)
        for operand in graph.operands[node.name]:
            if operand not in seen:
                seen.add(operand)
                open_names.append(operand)
    return names[:8]


def one_degree(rows: list[Array]) -> bool:
    """Whether the value is one number an image, times a fixed pattern."""
    flat = np.stack([r.astype(np.float64).ravel() for r in rows])
    if not np.isfinite(flat).all():
        return False
    flat = flat - flat[:1]
    if flat.shape[1] > 4096:
        flat = flat[:, np.random.default_rng(0).permutation(flat.shape[1])[:4096]]
    weights = np.linalg.svd(flat, compute_uv=False)
    return bool(weights[0] > 0 and (len(weights) == 1 or weights[1] <= 1e-3 * weights[0]))
