"""A file's bytes: found, read, unpacked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..errors import InputError, nearest
from .builtin import BUILTIN
from .wording import listing, show

if TYPE_CHECKING:
    import pandas as pd

_PACKED: list[tuple[bytes, str, Callable[[bytes], bytes]]] = [
    (b"\x1f\x8b", "gzip", gzip.decompress),
    (b"BZh", "bzip2", bz2.decompress),
    (b"\xfd7zXZ\0", "xz", lzma.decompress),
]
_NO_TABLE = ("__MACOSX/", ".")
_OTHER_BYTES = {
    b"\x93NUMPY": "a NumPy array (numpy.load)",
    b"\x89HDF": "HDF5 (pandas.read_hdf)",
    b"ARROW1": "an Arrow file (pandas.read_feather)",
    b"ORC": "ORC (pandas.read_orc)",
    b"SQLite format 3": "a SQLite data base (pandas.read_sql)",
    b"%PDF": "a PDF document",
}
_OTHER_TEXT = {
    r"(?:\[\s*[\[{\"\d-]|\{\s*\")": "JSON (pandas.read_json)",
    r"<(?:!doctype|\?xml|html|table|!--)": "HTML or XML (pandas.read_html)",
    r"(?:%[^\n]*\s*)*@relation\b": "ARFF (scipy.io.arff.loadarff)",
    r"[+-]?\d+(?:\.\d+)?(?:[ \t]+\d+:[^\s:]+)+\s*$": "LIBSVM rows (sklearn.datasets.load_svmlight_file)",
}


def open_file(path: Path) -> BinaryIO:
    """A file, opened to read.

    Raises:
        InputError: it is missing, a folder, or cannot be read.
    """
    named = show(path, limit=200)
    try:
        if path.is_dir():
            raise InputError(f"{named} is a folder; expected a CSV or TSV file")
        return path.open("rb")
    except InputError:
        raise
    except FileNotFoundError:
        folder = path.parent
        beside = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
        hint = nearest(path.name, [*BUILTIN, *beside])
        raise InputError(f"no file {named}{hint or '; built-in names are ' + ', '.join(BUILTIN)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read {named}: {reason}") from None


def refuse_other_bytes(start: bytes, name: str) -> None:
    """Refuse a file of another format, and name what reads it; a frame can be given instead."""
    for mark, kind in _OTHER_BYTES.items():
        if start.startswith(mark):
            raise _other(kind, name)


def refuse_other_text(head: str, name: str) -> None:
    """The same, for formats of text."""
    for form, kind in _OTHER_TEXT.items():
        if re.match(r"\s*" + form, head, re.IGNORECASE | re.MULTILINE):
            raise _other(kind, name)


def _other(kind: str, name: str) -> InputError:
    texts = "; prompts and answers are read with --task text" if kind.startswith("JSON") else ""
    return InputError(f"{name} looks like {kind}: expected CSV, TSV, Parquet or Excel{texts}")


def unpacked(data: bytes, name: str) -> tuple[bytes, str | None]:
    """What a packed file holds (gzip, bzip2, xz, or a zip with one file), and how it was packed; else ``data`` itself.

    Raises:
        InputError: it is broken, or a zip with several files.
    """
    for mark, kind, unpack in _PACKED:
        if data.startswith(mark):
            try:
                return unpack(data), kind
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
                raise InputError(f"{name} is a broken {kind} file") from None
    if not data.startswith(b"PK\x03\x04"):
        return data, None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [m for m in archive.namelist() if not m.startswith(_NO_TABLE) and not m.endswith("/")]
            if any(m.startswith("xl/") for m in members):
                return data, None
            if len(members) != 1:
                raise InputError(f"{name} holds {len(members)} files ({listing(members, limit=4)}): expected one table")
            return archive.read(members[0]), "zip"
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError):
        raise InputError(f"{name} is a broken or locked zip file") from None


def parquet(data: bytes, name: str) -> pd.DataFrame:
    """A Parquet file as a frame."""
    import pandas as pd

    try:
        return pd.read_parquet(io.BytesIO(data))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} is not a Parquet file that can be read: {reason}") from error


def excel(data: bytes, name: str) -> pd.DataFrame:
    """The first sheet of a workbook as a frame; its reader is an optional dependency."""
    import pandas as pd

    try:
        return pd.read_excel(io.BytesIO(data))
    except ImportError as error:
        raise InputError(f"{name}: reading Excel needs openpyxl; pip install 'steepest[excel]'") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} is not an Excel file that can be read: {reason}") from error
