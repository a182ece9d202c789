"""Changes of the numerics, one at a time, and whether the fast tests of the module notice.

    python -m benchmarks.mutants [--a-module N] [--only MODULE,...]      # `make mutants`: into results/mutants.json
    python -m benchmarks.mutants --check 20                              # `make mutants-ci`: a sample, writes nothing

cosmic-ray makes the mutants; a seeded sample of each module is taken. Those that differ in annotations alone are left
out, since nobody evaluates these. Each mutant runs in a fork of a process that has torch loaded, and is put in the
place of the module in memory, so that no file is ever changed. It is killed where a test fails or where it takes
``CPU_SECONDS``. What the results have is not run again; a survivor keeps its reason there.

``CHANGES`` are made by hand: each once passed all tests. `--check` runs them beside the sample.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import importlib
import importlib.util
import io
import itertools
import os
import random
import resource
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from benchmarks.rows import Row, Rows

RESULTS = Path(__file__).parent / "results" / "mutants.json"
SEED = 0
LEAST_KILLED = 0.9
MOST_UNEXPLAINED = 0.2
"""Of the twenty that continuous integration runs: chance moves so small a sample by a tenth."""
CPU_SECONDS = 60
TESTS = {
    "offline.steps.gate": ["tests/test_gate.py"],
    "offline.steps.calibrate": ["tests/test_calibrate.py"],
    "offline.steps.penalty": ["tests/test_penalty.py"],
    "offline.steps.verdict": ["tests/test_verdict.py"],
    "offline.steps.pool": ["tests/test_pool.py"],
    "offline.steps.decouple": ["tests/test_decouple.py"],
    "offline.steps.unlearn": ["tests/test_limits.py"],
    "models.protected": ["tests/test_protected.py"],
}
"""The fast tests of each module."""
FUNCTIONS = {"offline.steps.unlearn": {"go_along", "divergence", "held_back"}}
"""Where not all of a module is meant."""
CHANGES = (
    ("offline.steps.gate", "passed=after <= MAX_ASR", "passed=True", "tests/test_gate.py"),
    (
        "offline.steps.decouple",
        "loss = benign - other.clamp(max=4.0)",
        "loss = other.clamp(max=4.0) - benign",
        "tests/test_decouple.py",
    ),
    (
        "offline.jobs.publish",
        "trustworthy(scores, y, findings.targets) if alarming else",
        "",
        "tests/test_publish.py",
    ),
    ("offline.steps.penalty", "= 0.002, 0.05", "= 0.002, 0.25", "tests/test_penalty.py"),
    ("offline.steps.penalty", "(2.0, 1.0, 0.5)", "(8.0, 2.0, 1.0, 0.5)", "tests/test_penalty.py"),
    (
        "offline.steps.pool",
        "NEWEST_WEIGHT if i >= self._newest else 1.0",
        "1.0",
        "tests/test_pool.py",
    ),
    (
        "offline.triggers.base",
        "cls(strength, offsets",
        "cls(torch.ones(n), offsets",
        "tests/test_triggers.py",
    ),
)
"""Module, text, what it becomes, and the tests that have to notice."""
PRELOADED = (
    "torch", "onnx", "onnxruntime", "onnx2fx", "onnxscript", "hypothesis.extra.numpy", "PIL.Image", "httpx", "pydantic",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A changed module: its source, and the first line that differs, before and after."""

    module: str
    operator: str
    line: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> Row:
        """What says which mutant it is, also after lines were added above it."""
        return {
            "module": self.module,
            "operator": self.operator,
            "before": self.before,
            "after": self.after,
        }


def path_of(module: str) -> Path:
    """Its file, from the root of the repository."""
    return Path(*module.split(".")).with_suffix(".py")


def mutants(module: str, seed: int) -> Iterator[Mutant]:
    """Those of a module in an order drawn by ``seed``; none that changes nothing when it runs."""
    source = path_of(module).read_text()
    nodes = list(ast_nodes(get_ast(source)))
    bare, places = _bare(source), []
    for name in sorted(operator_names()):
        try:
            operator = get_operator(name)()
        except TypeError:  # one that asks for arguments
            continue
        count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
        places += [(name, operator, occurrence) for occurrence in range(count)]
    random.Random(f"{seed} {module}").shuffle(places)  # noqa: S311
    seen = {bare}
    for name, operator, occurrence in places:
        changed = mutate_code(source, operator, occurrence)
        if changed is None or (effect := _bare(changed)) in seen:
            continue
        seen.add(effect)
        lines = zip(source.splitlines(), changed.splitlines(), strict=False)
        line, (before, after) = next((i, pair) for i, pair in enumerate(lines, 1) if pair[0] != pair[1])
        if _wanted(module, source, line):
            yield Mutant(module, name.removeprefix("core/"), line, before.strip(), after.strip(), changed)


def sample(a_module: int, seed: int, only: Collection[str] = ()) -> Iterator[Mutant]:
    """So many of every module, or of ``only`` these; in turn, so that a part is a fair sample, too."""
    drawn = [mutants(module, seed) for module in TESTS if not only or module in only]
    for _ in range(a_module):
        for own in drawn:
            yield from itertools.islice(own, 1)


def killed(module: str, source: str, tests: list[str]) -> bool:
    """Whether ``tests`` fail, or never end, with ``source`` in place of a module."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        # The soft limit alone: what the tests start sets its own.
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        os._exit(_run(f"detrigger.{module}", source, tests))
    return os.waitpid(child, 0)[1] != 0


def pass_unchanged(modules: Collection[str]) -> None:
    """End where tests fail without any change: every mutant would seem to be killed."""
    failing = [name for name in modules if killed(name, path_of(name).read_text(), TESTS[name])]
    if failing:
        raise SystemExit(f"these fail without any change: {', '.join(TESTS[name][0] for name in failing)}")


def main() -> int:
    """0 where enough are killed and every survivor has a reason."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--a-module", type=int, default=27)
    parser.add_argument("--only", default="")
    parser.add_argument("--check", type=int, default=0)
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    # On one core: PyTorch's threads burn time where they wait for each other.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    gc.freeze()  # the forks need not look through what is loaded
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if asked.check:
        return check(asked.check, asked.seed)
    rows = Rows(RESULTS, ("module", "line", "operator", "after"))
    only = set(filter(None, asked.only.split(",")))
    missing = [mutant for mutant in sample(asked.a_module, asked.seed, only) if not rows.has(mutant.key)]
    pass_unchanged({mutant.module for mutant in missing})
    for mutant in missing:
        started = time.process_time() + _children()
        dead = killed(mutant.module, mutant.source, TESTS[mutant.module])
        seconds = round(time.process_time() + _children() - started, 1)
        rows.add(mutant.key | {"line": mutant.line, "killed": dead, "cpu_seconds": seconds, "reason": ""})
    return _summary(rows.rows)


def check(n: int, seed: int) -> int:
    """The changes made by hand, and n of the sample: 1 where one of the first or too many of the others survive.

    An edit of a module draws others of its mutants, so that not each can have been explained in the results.
    """
    known = Rows(RESULTS, ("module",))
    alive = unexplained = 0
    pass_unchanged(TESTS)
    for module, before, after, tests in CHANGES:
        source = path_of(module).read_text()
        if source.count(before) != 1:
            raise SystemExit(f"{module} has no single {before!r} any more; mend CHANGES")
        dead = killed(module, source.replace(before, after), [tests])
        print("killed  " if dead else "SURVIVED", f"{module}: {before!r} -> {after!r}", flush=True)
        alive += not dead
    for mutant, _ in zip(sample(-(-n // len(TESTS)), seed), range(n), strict=False):
        dead = killed(mutant.module, mutant.source, TESTS[mutant.module])
        reason = next((row["reason"] for row in known.rows if mutant.key.items() <= row.items()), "")
        unexplained += not (dead or reason)
        print(
            "killed  " if dead else "SURVIVED",
            f"{mutant.module}:{mutant.line}: {mutant.after}",
            reason,
            flush=True,
        )
    return int(alive > 0 or unexplained > MOST_UNEXPLAINED * n)


def _summary(rows: list[Row]) -> int:
    """Print the shares; 1 where they fall short."""
    for module in TESTS:
        own = [row["killed"] for row in rows if row["module"] == module]
        print(f"{module}: {sum(own)} of {len(own)} killed")
    share = sum(row["killed"] for row in rows) / max(len(rows), 1)
    unexplained = [row for row in rows if not row["killed"] and not row["reason"]]
    print(f"{len(rows)} mutants, {share:.1%} killed, {len(unexplained)} survivors without a reason")
    return int(share < LEAST_KILLED or bool(unexplained))


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(name: str, source: str, tests: list[str]) -> int:
    """In the child: the tests' exit status with the module replaced."""
    import hypothesis

    hypothesis.settings.register_profile(
        "mutants",
        database=None,
        deadline=None,
        derandomize=True,
        max_examples=30,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutants")
    silent = io.StringIO()
    with redirect_stdout(silent), redirect_stderr(silent):
        try:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            exec(compile(source, spec.origin, "exec"), module.__dict__)  # noqa: S102
            parent, _, last = name.rpartition(".")
            setattr(sys.modules[parent], last, module)
        except Exception:
            return 1
        return int(
            pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not process", *tests])
        )


def _bare(source: str) -> str:
    """What of a source has an effect, as a digest: no annotations, no docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = None if isinstance(node, ast.arg) else ast.Constant(0)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _wanted(module: str, source: str, line: int) -> bool:
    """Whether a line is in one of the functions that are meant."""
    if module not in FUNCTIONS:
        return True
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return any(
        f.name in FUNCTIONS[module] and f.lineno <= line <= (f.end_lineno or f.lineno) for f in functions
    )


if __name__ == "__main__":
    raise SystemExit(main())
