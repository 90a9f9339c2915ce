"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, text: str) -> Path:
    """Write UTF-8 text to a temporary file beside ``path`` and move it there in one step.

    Args:
        path: where the file will be; its folder must exist.
        text: the whole content.

    Returns:
        ``path``.

    Raises:
        OSError: the folder is missing, full or closed to us; ``path`` is then as it was.

    >>> folder = getfixture("tmp_path")
    >>> write_atomically(folder / "a.txt", "one").read_text()
    'one'
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; a report is as readable as any new file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
