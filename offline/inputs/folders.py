"""Images in folders, as people keep them: one folder a class, or one folder of images without classes.

What is not read is said in one note. Everything here comes from strangers: whatever is wrong with it is one BadInput
that names the file.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from detrigger.models.files import folder_name
from detrigger.models.preprocess import same_text
from detrigger.offline.inputs.images import bad_data, counted, suffixes

_NO_CLASSES = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
_NO_IMAGES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_NO_FOLDER_NAME = re.compile(r'[/\\:*?"<>|]')
_MAX_COUNTED = 100_000
_NAMED = 3


@dataclass
class Found:
    """Image files with their labels, and what lies beside them unread."""

    files: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    nested: dict[str, int] = field(default_factory=dict)

    def note(self) -> str:
        """What was not read, in one line; empty where everything was."""
        said = []
        if self.unread:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.unread.most_common(6))
            more = f" and {len(self.unread) - 6} other kinds" if len(self.unread) > 6 else ""
            said.append(f"{counted(self.unread.total(), 'file')} not read: {kinds}{more}")
        if self.nested:
            shown = [f"{name} ({count} images)" for name, count in list(self.nested.items())[:_NAMED]]
            more = f" and {len(self.nested) - _NAMED} more" if len(self.nested) > _NAMED else ""
            said.append(
                f"{counted(len(self.nested), 'subfolder')} not read: {', '.join(shown)}{more}; move their images up"
                " to use them"
            )
        return "; ".join(said)


def as_folder(name: str) -> str:
    r"""The name of a class as a folder's: each of / \ : * ? " < > | is written as _ ("ice/snow" is ice_snow)."""
    return _NO_FOLDER_NAME.sub("_", same_text(name))


def list_classes(root: Path, wanted: Sequence[str], *, complete: bool) -> tuple[tuple[str, ...], Found]:
    """The classes, in the order of `wanted` or else of the folders' names, and the images of each.

    Names match however their accents are composed, and where a class has a name that no folder can have, by
    `as_folder` or as the quarantine writes it. With `complete` no class may be missing or without images.
    """
    with listing(root):
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and _is_class(path.name))
    folders = _by_class(root, names, wanted, complete=complete)
    found = Found()
    for label, folder in enumerate(folders.values()):
        files = _images_in(root, folder, found) if folder is not None else []
        if not files and complete:
            said = found.note()
            raise bad_data(
                f"the class folder {root / (folder or '')} holds no images ({', '.join(sorted(suffixes()))}): put the"
                f" images of the class directly into it, or remove it{f' ({said})' if said else ''}"
            )
        found.files += files
        found.labels += [label] * len(files)
    if not found.files:
        raise bad_data(f"the class folders of {root} hold no images ({', '.join(sorted(suffixes()))})")
    return tuple(folders), found


def list_unlabelled(root: Path) -> Found:
    """The images directly in a folder and in its subfolders, whose names are left out of account."""
    found = Found()
    with listing(root):
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and _is_class(path.name))
    found.files = _images_in(root, "", found)
    found.nested.clear()
    for name in names:
        found.files += _images_in(root, name, found)
    found.labels = [0] * len(found.files)
    if not found.files:
        raise bad_data(f"{root} holds no images ({', '.join(sorted(suffixes()))})")
    return found


@contextmanager
def listing(folder: Path) -> Iterator[None]:
    """Errors of listing a folder as BadInput."""
    try:
        yield
    except OSError as error:
        raise bad_data(f"cannot read {folder}: {error.strerror}; check its permissions") from error


def _is_class(name: str) -> bool:
    return name[0] != "." and name not in _NO_CLASSES


def _by_class(
    root: Path, names: Sequence[str], wanted: Sequence[str], *, complete: bool
) -> dict[str, str | None]:
    """The folder of each class; None where it may be missing and is."""
    if not names:
        raise bad_data(
            f"{root} has no class folders: it should hold one folder of images per class; --unlabelled takes images"
            " without classes"
        )
    if len(names) == 1 and complete:
        raise bad_data(
            f"{root} has images of one class only ({names[0]!r}): give images of all classes of the model"
        )
    for name in names:
        # The name becomes a class label in manifests, answers and reports.
        if not name.isprintable() or len(name) > 200:
            raise bad_data(
                f"the class folder {name[:80]!r} of {root} needs a printable name of 1 to 200 characters"
            )
    found: dict[str, str] = {}
    for name in names:
        if (other := found.setdefault(same_text(name), name)) != name:
            raise bad_data(
                f"two class folders of {root} are both called {name!r} ({other!a} and {name!a}); rename one"
            )
    if not wanted:
        return dict(found)
    matched = {
        c: next(
            (found.get(key) for key in (same_text(c), as_folder(c), folder_name(c)) if key in found), None
        )
        for c in wanted
    }
    twice = [name for name, count in Counter(filter(None, matched.values())).items() if count > 1]
    if twice:
        both = " and ".join(repr(c) for c, name in matched.items() if name == twice[0])
        raise bad_data(f"the folder {twice[0]!r} of {root} would be the folder of {both}; rename a class")
    missing = sorted(as_folder(c) for c, name in matched.items() if name is None)
    extra = sorted(set(found.values()) - set(matched.values()))
    if extra or (missing and complete):
        raise bad_data(
            f"the folders of {root} are not the classes of the model:"
            f"{_some('missing', missing)}{_some('unknown', extra)} rename the folders or correct 'classes'"
        )
    return matched


def _images_in(root: Path, name: str, found: Found) -> list[Path]:
    """The images of one folder in order of their names; `found` is told of what is none."""
    folder, known = root / name, suffixes()
    with listing(folder), os.scandir(folder) as items:
        entries = sorted((item.name, Path(item).is_dir()) for item in items if item.name[0] != ".")
    files = []
    for entry, is_folder in entries:
        suffix = Path(entry).suffix
        if is_folder:
            if _is_class(entry) and (count := _count_images(folder / entry, known)):
                found.nested[f"{name}/{entry}"] = count
        elif suffix.lower() in known:
            files.append(folder / entry)
        elif entry.lower() not in _NO_IMAGES:
            found.unread[suffix[:20] or "without an ending"] += 1
    return files


def _count_images(folder: Path, known: frozenset[str]) -> int:
    count = seen = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if _is_class(name)]
        count += sum(Path(file).suffix.lower() in known and file[0] != "." for file in files)
        seen += len(files) + len(folders)
        if seen > _MAX_COUNTED:
            break
    return count


def _some(word: str, names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return (
        f" {word}: {shown}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''};"
        if names
        else ""
    )
