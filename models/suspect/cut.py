"""The feature cut: where a classifier is split into S_a, image to features, and S_b, features to logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from detrigger.models.errors import BadInput
from detrigger.models.suspect.file import first_line


def find_cut(
    graph: fx.GraphModule, sample: Tensor, feature_node: str | None, fixed: int | None = None
) -> tuple[fx.GraphModule, fx.GraphModule, str]:
    """Split the graph into S_a and S_b where the spatial dimensions are last seen.

    The cut is the last node that every path from the input to the logits passes through and whose output is still
    spatial: (N, C, h, w) with h*w > 1 or, in a network of tokens, (N, T, D). Where no such node is on all paths
    the logits themselves are the features. ``fixed`` is the batch size that the graph is made for, None for any; the
    sample has two images at least.
    """
    shapes = _Shapes(graph)
    fewer = _Shapes(graph)
    try:
        with torch.no_grad():
            shapes.run(sample[:fixed])
            fewer.run(sample[: fixed or -1])
    except BadInput as error:  # torch.fx has added lines of its own
        raise BadInput(str(error).split("\n", 1)[0]) from error
    through = _bottlenecks(graph)
    names = {str(n.meta.get("onnx_name") or n.name): n for n in through}
    if feature_node is not None:
        if feature_node not in names:
            some = ", ".join(list(names)[-8:])
            raise BadInput(f"no node {feature_node!r} that all paths pass through; the last ones are: {some}")
        chosen: fx.Node | None = names[feature_node]
    else:
        chosen = _last(through, shapes.seen, lambda s: len(s) == 4 and s[2] * s[3] > 1 and min(s[1:]) > 0)
        # A 4-d value near the input (the normalised image) is no feature of a network of tokens.
        tokens = _last(through, shapes.seen, lambda s: len(s) == 3)
        order = {n: i for i, n in enumerate(graph.graph.nodes)}
        if tokens is not None and (chosen is None or order[tokens] > order[chosen] + 8):
            chosen = tokens
        chosen = chosen or _last(through, shapes.seen, lambda s: len(s) == 2)
    if chosen is None:
        raise BadInput("no feature layer was found in the model; name one with --feature-node")
    body = _part(graph, None, chosen)
    head = _part(graph, chosen, None, _sizes(graph, shapes, fewer, len(sample)))
    name = str(chosen.meta.get("onnx_name") or chosen.name)
    return body, head, name


class _Shapes(fx.Interpreter):
    """Runs the graph once and notes the shape of every value."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[fx.Node, tuple[int, ...]] = {}
        self.sizes: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except Exception as error:
            name = n.meta.get("onnx_name") or n.name
            raise BadInput(
                f"{n.meta.get('onnx_op_type', n.op)} node {name!r} does not run in torch: {first_line(error)}; "
                "export the model with torch's other exporter (dynamo=True or dynamo=False)"
            ) from error
        if isinstance(value, Tensor):
            self.seen[n] = tuple(value.shape)
            if n.meta.get("onnx_op_type") == "Shape":
                self.sizes[n] = value
        return value


def _sizes(
    graph: fx.GraphModule, shapes: _Shapes, fewer: _Shapes, batch: int
) -> dict[fx.Node, tuple[Tensor, Tensor]]:
    """Of each node that reads a shape: what an image adds to it, and the rest, from a batch and one image fewer."""
    found = {}
    for node in graph.graph.nodes:
        if node in shapes.sizes and node in fewer.sizes:
            each = shapes.sizes[node] - fewer.sizes[node]
            found[node] = (each, shapes.sizes[node] - batch * each)
    return found


def _size_for(features: Tensor, each: list[int], rest: list[int]) -> Tensor:
    """A shape that was read before the cut, for as many images as there are features."""
    return torch.tensor(each) * len(features) + torch.tensor(rest)


def _bottlenecks(graph: fx.GraphModule) -> list[fx.Node]:
    """Nodes that depend on the image and that all its paths to the output pass through, in order."""
    live: set[fx.Node] = set()
    open_edges: set[fx.Node] = set()
    found = []
    users_left = {n: len(n.users) for n in graph.graph.nodes}
    for node in graph.graph.nodes:
        sources = [s for s in node.all_input_nodes if s in live]
        for source in sources:
            users_left[source] -= 1
            if users_left[source] == 0:
                open_edges.discard(source)
        # A shape is no feature: what only reads shapes (a later Reshape) does not bypass anything.
        if node.op == "placeholder" or (sources and node.meta.get("onnx_op_type") != "Shape"):
            live.add(node)
            if node.op not in ("placeholder", "output") and not open_edges:
                found.append(node)
            open_edges.add(node)
    return found


def _last(
    nodes: list[fx.Node], shapes: dict[fx.Node, tuple[int, ...]], wanted: Callable[[tuple[int, ...]], bool]
) -> fx.Node | None:
    return next((n for n in reversed(nodes) if n in shapes and wanted(shapes[n])), None)


def _part(
    graph: fx.GraphModule,
    start: fx.Node | None,
    stop: fx.Node | None,
    sizes: dict[fx.Node, tuple[Tensor, Tensor]] | None = None,
) -> fx.GraphModule:
    """The part of ``graph`` after ``start`` (None: from the input) up to ``stop`` (None: to the output).

    ``sizes`` tell what nodes that read a shape before ``start`` say; later nodes may use it (a Flatten after pooling
    that reads the image's batch).
    """
    new = fx.Graph()
    done: dict[fx.Node, fx.Node] = {}
    if start is not None:
        done[start] = new.placeholder("features")
        for reader, (each, rest) in (sizes or {}).items():
            done[reader] = new.call_function(_size_for, (done[start], each.tolist(), rest.tolist()))
    for node in graph.graph.nodes:
        if start is not None and node is start:
            continue
        if node.op == "output":
            new.output(done[cast(fx.Node, node.args[0])])
        # After the start everything is ready; before it only constants and sizes are, as the image was left out.
        elif _ready(node, done) and not (node.op == "placeholder" and start is not None):
            done[node] = new.node_copy(node, lambda n: done[n])
        if stop is not None and node is stop:
            new.output(done[stop])
            break
    part = fx.GraphModule(graph, new)
    part.graph.eliminate_dead_code()
    part.delete_all_unused_submodules()
    part.recompile()
    return part


def _ready(node: fx.Node, done: dict[fx.Node, fx.Node]) -> bool:
    return all(n in done for n in node.all_input_nodes)
