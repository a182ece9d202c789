"""Property: whatever is published, promoted or rolled back, and at whichever system call the process dies,
the store then holds what was there before or what was to be there after, whole, and works on.
"""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from detrigger.models.errors import StoreError
from detrigger.models.promotions import serving_stack
from detrigger.models.store import VersionStore
from tests.toys import toy_manifest

CALLS = ("open", "write", "fsync", "link", "mkdir", "rename", "replace", "unlink", "rmdir", "chmod", "pwrite")
CONTENT = {"protected.onnx": b"p" * 300, "report.json": b"{}"}


class Killed(BaseException):
    """The process is no more: no handler may do anything after this."""


@contextmanager
def dying_at(step: int | None, *, full: bool = False) -> Iterator[None]:
    """Die (or find the disk full for good) at the `step`-th call that changes the file system."""
    real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in CALLS}
    left = step

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real[name](*arguments, **options)
            if left is not None and left <= 0:
                if full:
                    # Removing, and opening what is there, work on a full disk.
                    if name in ("unlink", "rmdir") or (name == "open" and Path(arguments[0]).exists()):
                        return real[name](*arguments, **options)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if name == "write" and left == 0:
                    left = -1
                    real[name](arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise Killed
            if left is not None:
                left -= 1
            # Real syncs would only make the test slow: this is about processes that die, not about power.
            return None if name == "fsync" else real[name](*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, wrap(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


steps = st.none() | st.integers(0, 30)


class Store(RuleBasedStateMachine):
    """Model: the set of published versions and the stack of served ones."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name) / "store"
        self.published: set[str] = set()
        self.stack: list[str] = []
        self.count = 0

    def teardown(self) -> None:
        """Remove the store."""
        self.folder.cleanup()

    @initialize(step=steps)
    def create(self, step: int | None) -> None:
        """A store whose creation may die is made by trying again."""
        try:
            with dying_at(step):
                VersionStore.create(self.root)
        except Killed:
            VersionStore.create(self.root)

    @rule(step=steps, full=st.booleans())
    def publish(self, step: int | None, full: bool) -> None:
        """Publish a new version."""
        self.count += 1
        version = f"20250131T120000Z-{self.count:08x}"
        try:
            with dying_at(step, full=full), VersionStore(self.root).stage(version) as staging:
                for name, content in CONTENT.items():
                    (staging / name).write_bytes(content)
                VersionStore(self.root).publish(staging, toy_manifest(version))
        except Killed:
            # It may have died between the rename and the return.
            if version in VersionStore(self.root).version_ids():
                self.published.add(version)
        except StoreError as error:
            assert error.code == "disk_full"  # noqa: PT017
            assert not list((self.root / "staging").glob("*"))
            if version in VersionStore(self.root).version_ids():
                self.published.add(version)
        else:
            self.published.add(version)

    @rule(step=steps, full=st.booleans(), data=st.data())
    def promote(self, step: int | None, full: bool, data: st.DataObject) -> None:
        """Promote any published version."""
        if not self.published:
            return
        version = data.draw(st.sampled_from(sorted(self.published)))
        after = self.stack if self.stack[-1:] == [version] else [*self.stack, version]
        self._switch(step, full, lambda store: store.promote(version, "test", ""), after)

    @rule(step=steps, full=st.booleans())
    def rollback(self, step: int | None, full: bool) -> None:
        """Roll back where there is something to roll back to."""
        if len(self.stack) < 2:
            return
        self._switch(step, full, lambda store: store.rollback("test", ""), self.stack[:-1])

    def _switch(
        self, step: int | None, full: bool, change: Callable[[VersionStore], object], after: list[str]
    ) -> None:
        try:
            with dying_at(step, full=full):
                change(VersionStore(self.root))
        except (Killed, StoreError) as error:
            assert not isinstance(error, StoreError) or error.code == "disk_full"  # noqa: PT017
            now = serving_stack(VersionStore(self.root).promotions())
            assert now in (self.stack, after)
            self.stack = now
        else:
            self.stack = after

    @rule()
    def next_job(self) -> None:
        """A new job finds the lock free and clears what is left over."""
        with VersionStore(self.root).job_lock():
            assert not list((self.root / "staging").glob("*"))

    @invariant()
    def is_whole(self) -> None:
        """Nothing half-written is visible, and the served version is the model's."""
        if not (self.root / "store.json").exists():
            return
        store = VersionStore(self.root)
        assert set(store.version_ids()) == self.published
        assert store.damaged() == {}
        for version in self.published:
            folder = store.open_version(version)
            assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *sorted(CONTENT)]
        assert serving_stack(store.promotions()) == self.stack
        assert store.current() == (self.stack[-1] if self.stack else None)


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=60,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
