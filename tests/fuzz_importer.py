"""Coverage-guided fuzzing of the import of a suspect, over ONNX bytes and over mutated graphs.

    python -m tests.fuzz_importer FOLDER SECONDS SEED

libFuzzer (by atheris) mutates small valid models, half the time as bytes and half the time as graphs (operators,
attributes, shapes, wires, constants), and keeps what reaches new branches of the importer and of onnx2fx. The import
runs in the fuzzer's own process, where native code may crash; what crashes, hangs or takes more memory is kept in
FOLDER/found, and is then given to the import as users call it, which tries a file in a process of its own first. A
defect is an input to which that one answers neither with a suspect nor with a refusal of one line, or not in time.
FOLDER/fuzz.json says what was found.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

RUNS = "FUZZ_ONCE" in os.environ
GUIDES = ["detrigger.models.suspect", "onnx2fx.graph_builder", "onnx2fx.utils"]

with atheris.instrument_imports(include=GUIDES) if RUNS else nullcontext():
    from detrigger.models.suspect.importing import import_suspect, unguarded

from detrigger.models.errors import BadInput  # noqa: E402
from detrigger.models.preprocess import Preprocess  # noqa: E402
from tests.test_suspect import SIDE, images, network  # noqa: E402

GIVEN = Preprocess(size=(SIDE, SIDE), mean=(0.4,) * 3, std=(0.25,) * 3)
OPERATORS = (
    "Relu", "Sigmoid", "Softmax", "Identity", "Cast", "Shape", "Reshape", "Flatten", "Transpose", "Concat", "Add",
    "Mul", "MatMul", "Gemm", "Conv", "MaxPool", "GlobalAveragePool", "ReduceMean", "Resize", "Expand", "Gather",
    "Slice", "Squeeze", "Unsqueeze", "Where", "Pad", "Tile", "ConstantOfShape", "QuantizeLinear", "DequantizeLinear",
    "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "BatchNormalization", "LayerNormalization", "ArgMax",
    "TopK", "Loop", "If", "Scan", "Range", "NonZero", "Einsum", "OneHot", "CumSum", "Split", "Upsample",
)  # fmt: skip
NUMBERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 5, 255, 65536, 2**20, 2**31 - 1, 2**40, 2**63 - 1)
WORST_SECONDS, WORST_MIB = 240, 6144

answers: Counter[str] = Counter()


def seeds() -> list[onnx.ModelProto]:
    """Small valid models of every kind that the import takes."""
    models = [
        network(), network(batch=1), network(layout="NHWC"), network(last="Softmax"), network(last="ArgMax"),
        network(dtype=TensorProto.FLOAT16), network(batch=8),
    ]  # fmt: skip
    held = network(batch=1)
    held.graph.initializer.append(numpy_helper.from_array(np.array([1, 8]), "target"))
    held.graph.node[5].CopyFrom(helper.make_node("Reshape", ["e", "target"], ["f"]))
    training = network()
    for name, value in (("s", 1.0), ("z", 0.0)):
        training.graph.initializer.append(numpy_helper.from_array(np.full(8, value, np.float32), name))
    normal = helper.make_node("BatchNormalization", ["a", "s", "z", "z", "s"], ["b"], training_mode=0)
    training.graph.node[1].CopyFrom(normal)
    rounded = network()
    for name, grid in (("q", np.array(0.05, np.float32)), ("o", np.array(128, np.uint8))):
        rounded.graph.initializer.append(numpy_helper.from_array(grid, name))
    rounded.graph.node[1].CopyFrom(helper.make_node("QuantizeLinear", ["a", "q", "o"], ["aq"]))
    rounded.graph.node.insert(2, helper.make_node("DequantizeLinear", ["aq", "q", "o"], ["b"]))
    dynamic = network()
    weight = numpy_helper.from_array(np.ones((8, 8, 3, 3), np.int8), "wq")
    dynamic.graph.initializer.append(weight)
    dynamic.graph.node.insert(2, helper.make_node("DynamicQuantizeLinear", ["b"], ["bq", "bs", "bz"]))
    dynamic.graph.node[3].CopyFrom(
        helper.make_node("ConvInteger", ["bq", "wq", "bz"], ["ci"], strides=[2, 2], name="ci")
    )
    dynamic.graph.node.insert(4, helper.make_node("Cast", ["ci"], ["cf"], to=TensorProto.FLOAT))
    dynamic.graph.node.insert(5, helper.make_node("Mul", ["cf", "bs"], ["c"]))
    called = network()
    body = helper.make_function(
        "local", "Act", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [helper.make_opsetid("", 18)]
    )
    called.functions.append(body)
    called.opset_import.append(helper.make_opsetid("local", 1))
    called.graph.node[1].CopyFrom(helper.make_node("Act", ["a"], ["b"], domain="local"))
    beside = network()
    first = beside.graph.initializer[0]
    first.ClearField("raw_data")
    first.data_location = TensorProto.EXTERNAL
    first.external_data.add(key="location", value="weights.bin")
    return [*models, held, training, rounded, dynamic, called, beside]


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """What libFuzzer makes of an input: other bytes, or another graph."""
    if seed % 2:
        return bytes(atheris.Mutate(data, max_size))
    chance = random.Random(seed)
    try:
        model = onnx.load_from_string(data)
        for _ in range(chance.randint(1, 4)):
            _change(model, chance)
        changed = bytes(model.SerializeToString())
    except Exception:  # protobuf raises several unrelated types, and a mutation may not apply
        return bytes(atheris.Mutate(data, max_size))
    return changed if len(changed) <= max_size else data


def _change(model: onnx.ModelProto, chance: random.Random) -> None:
    """One change of the graph; may raise where there is nothing to change."""
    graph = model.graph
    node = chance.choice(graph.node)
    names = [
        *(n for one in graph.node for n in one.output),
        *(t.name for t in graph.initializer),
        "input",
        "",
    ]
    kind = chance.randrange(10)
    if kind == 0:
        node.op_type = chance.choice(OPERATORS)
    elif kind == 1 and node.input:
        node.input[chance.randrange(len(node.input))] = chance.choice(names)
    elif kind == 2 and node.attribute:
        attribute = chance.choice(node.attribute)
        attribute.i = chance.choice(NUMBERS)
        if attribute.ints:
            attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(NUMBERS)
    elif kind == 3:
        value = np.array([chance.choice(NUMBERS) for _ in range(chance.randint(1, 5))])
        graph.initializer.append(numpy_helper.from_array(value, f"c{len(graph.initializer)}"))
        made = chance.choice(OPERATORS)
        inputs = [chance.choice(names), f"c{len(graph.initializer) - 1}"]
        place = chance.randrange(len(graph.node) + 1)
        graph.node.insert(place, helper.make_node(made, inputs, [f"n{len(graph.node)}"]))
    elif kind == 4:
        dims = chance.choice([*graph.input, *graph.output]).type.tensor_type.shape.dim
        chance.choice(dims).dim_value = chance.choice(NUMBERS)
    elif kind == 5:
        tensor = chance.choice(graph.initializer)
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(NUMBERS)
    elif kind == 6:
        graph.node.remove(node)
    elif kind == 7:
        model.opset_import[0].version = chance.randint(1, 25)
    elif kind == 8:
        chance.choice([*graph.input, *graph.output]).type.tensor_type.elem_type = chance.randint(0, 25)
    else:
        graph.output[0].name = chance.choice(names)


def once(path: Path, data: bytes) -> None:
    """The import in this process: a suspect, or a refusal of one line."""
    path.write_bytes(data)
    try:
        found = unguarded(path, GIVEN, images())
    except BadInput as refusal:
        if "\n" in str(refusal):
            raise AssertionError("a refusal of several lines") from refusal
        answers["refused"] += 1
    else:
        assert found.suspect(torch.zeros(1, 3, SIDE, SIDE)).shape[1] >= 2
        answers["imported"] += 1
    if sum(answers.values()) % 100 == 0:
        (path.parent / "answers.json").write_text(json.dumps(answers))


def fuzz(folder: Path, seconds: int, seed: int) -> None:
    """One run of libFuzzer, which ends the process; a native crash ends it as well."""
    torch.set_num_threads(1)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    (work / "weights.bin").write_bytes(network().graph.initializer[0].raw_data)
    options = {
        "max_total_time": seconds, "seed": seed + 1, "timeout": 30, "rss_limit_mb": 4096, "malloc_limit_mb": 2048,
        "max_len": 16384, "artifact_prefix": f"{folder}/found/", "print_final_stats": 1,
    }  # fmt: skip
    arguments = [
        sys.argv[0],
        *(f"-{name}={value}" for name, value in options.items()),
        str(folder / "corpus"),
    ]
    atheris.Setup(arguments, lambda data: once(work / "model.onnx", data), custom_mutator=mutate)
    atheris.Fuzz()


def again(path: Path) -> dict[str, object]:
    """The import as users call it, on an input that was found."""
    began, code = time.monotonic(), f"from tests.fuzz_importer import answer; answer({str(path)!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=WORST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"input": path.name, "answer": "none in time", "defect": True}
    said = (done.stdout.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    good = done.returncode == 0 and said.startswith(("refused", "imported"))
    return {
        "input": path.name,
        "answer": said[:200],
        "seconds": round(time.monotonic() - began, 1),
        "defect": not good,
    }


def answer(path: str) -> None:
    """Print what the import says, and how much memory this process and its children took."""
    try:
        import_suspect(Path(path), GIVEN, images())
        said = "imported"
    except BadInput as refusal:
        said = f"refused: {refusal}"
    used = (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        >> 10
    )
    assert used < WORST_MIB, used
    print(said)  # noqa: T201 - the answer to the parent


def main() -> None:
    """Run libFuzzer again and again until the time is over, then try what was found."""
    folder, seconds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if RUNS:
        fuzz(folder, seconds, seed)
        return
    for name in ("corpus", "found"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, model in enumerate(seeds()):
        (folder / "corpus" / f"seed{number:02d}").write_bytes(model.SerializeToString())
    end, runs, executions = time.monotonic() + seconds, 0, Counter[str]()
    environment = {**os.environ, "FUZZ_ONCE": "1"}
    while (left := int(end - time.monotonic())) > 5:
        (folder / "work").mkdir(exist_ok=True)
        (folder / "work" / "answers.json").unlink(missing_ok=True)
        with (folder / "log.txt").open("ab") as log:
            subprocess.run(
                [sys.executable, "-m", "tests.fuzz_importer", str(folder), str(left), str(seed + runs)],
                env=environment, stdout=log, stderr=log, check=False,
            )  # fmt: skip
        runs += 1
        if (folder / "work" / "answers.json").exists():
            executions.update(json.loads((folder / "work" / "answers.json").read_text()))
        report(folder, seconds, runs, executions, None)
    report(folder, seconds, runs, executions, [again(path) for path in sorted((folder / "found").iterdir())])


def report(
    folder: Path, seconds: int, runs: int, executions: Counter[str], found: list[dict[str, object]] | None
) -> None:
    """Write FOLDER/fuzz.json."""
    result = {
        "seconds": seconds,
        "runs": runs,
        "at_least": dict(executions),
        "corpus": len(list((folder / "corpus").iterdir())),
        "ended_the_fuzzer": len(list((folder / "found").iterdir())),
        "defects": None if found is None else sum(bool(one["defect"]) for one in found),
        "answers_to_found": found,
    }
    (folder / "fuzz.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
