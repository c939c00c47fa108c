"""Files that are complete under their name, or not there: those that the converter writes, and those it downloads."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import requests
from tqdm import tqdm

from conversion import ConversionError

TIMEOUT_S = (5, 30)  # to connect, and without a single byte
MEGABYTE = 1 << 20

# The assignment's own photographs, on which the published results of its network are known.
PHOTOS_URL = (
    "https://raw.githubusercontent.com/MTailorEng/mtailor_mlops_assessment/1a3464dd1125008f9e1545b34a0b0f0d06247b43"
)
PHOTOS = {
    "n01440764_tench.jpeg": "sha256:98f7e89b26142f7bdb61f3a627dee89729b0bb07a29e9e7f3be9d394c00c6f01",
    "n01632777_axolotl.jpeg": "sha256:04c86fd7c01c8383c04ff088a65a0e8692e8e4a8fa3169026249607252bc299f",
}


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


def digests(content: bytes) -> tuple[str, str]:
    """Return `sha256:` and what sha256sum prints for a file's content, and `git:` and what `git hash-object` prints."""
    blob = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    blob.update(content)
    return f"sha256:{hashlib.sha256(content).hexdigest()}", f"git:{blob.hexdigest()}"


def download(urls: Sequence[str], path: Path, known: Sequence[str]) -> None:
    """Write to `path` what the first of `urls` gives that has a `known` digest. Raises ConversionError if none does.

    The first line of the error is complete on its own; the reason for each URL and what to do follow.
    """
    failures = []
    for url in urls:
        try:
            with requests.get(url, stream=True, timeout=TIMEOUT_S) as response:
                response.raise_for_status()
                total = 1 + (response.raw.length_remaining or 0) // MEGABYTE
                content = b"".join(tqdm(response.iter_content(MEGABYTE), path.name, total, unit="MB"))
            if set(known).isdisjoint(digests(content)):
                what = response.headers.get("Content-Type", "a file")
                raise ConversionError(f"{what} with the digest {digests(content)[0]}, which is not a known one")
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as part:
                part.write_bytes(content)
            return
        except (requests.RequestException, ConversionError) as error:
            failures.append(f"  {url}: {error}")
    advice = "or use --weights, or --model efficientnet-lite0, whose weights ship as a package"
    lines = [f"{path.name} could not be downloaded", *failures, f"Put it next to convert_to_onnx.py, {advice}"]
    raise ConversionError("\n".join(lines))
