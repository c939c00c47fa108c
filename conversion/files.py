"""Output files: complete under their name, or not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from conversion import ConversionError


def check_writable(path: Path) -> None:
    """Raise ConversionError if no file can be written to `path`."""
    if path.is_dir():
        raise ConversionError(f"{path} cannot be written: Is a directory")
    try:
        TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ConversionError(f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. It becomes `path` if the block succeeds; otherwise `path` stays as it was."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
