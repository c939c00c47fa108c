"""Download a file whose digest is known: complete and right, or not at all."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import requests
from tqdm import tqdm

from conversion import ConversionError

TIMEOUT_S = (5, 30)  # to connect, and without a single byte
CHUNK_BYTES = 1 << 20


def digests(path: Path) -> tuple[str, str]:
    """Return the file's digests: `sha256:…`, and `git:…`, the name that git gives it as a blob.

    The second is SHA-1 of `blob <size>`, a zero byte and the content (`git hash-object`).
    """
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256")
        file.seek(0)
        hashlib.file_digest(file, lambda: git)
    return f"sha256:{sha256.hexdigest()}", f"git:{git.hexdigest()}"


def download(urls: Sequence[str], path: Path, known: Sequence[str]) -> None:
    """Write to `path` what the first of `urls` gives whose digest is among `known`, each as `digests` returns it.

    The file appears under its name when it is complete and right, never before. Raises ConversionError when every
    address has failed.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in urls:
        try:
            fetch(url, part)
            if not set(digests(part)) & set(known):
                raise ConversionError(f"digest {digests(part)[0]} is not a known one")
            part.replace(path)
            return
        except (requests.RequestException, ConversionError) as error:
            reasons.append(f"  {url}: {error}")
        finally:
            part.unlink(missing_ok=True)
    raise ConversionError(f"{path.name} could not be downloaded:\n" + "\n".join(reasons))


def fetch(url: str, path: Path) -> None:
    """Write what `url` gives to `path`, with a progress bar. Raises ConversionError or requests.RequestException."""
    with requests.get(url, stream=True, timeout=TIMEOUT_S) as response:
        response.raise_for_status()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise ConversionError("answered with a web page instead of the file")
        bar = {"total": response.raw.length_remaining, "desc": path.stem}
        with path.open("wb") as file, tqdm.wrapattr(file, "write", **bar) as target:
            for chunk in response.iter_content(CHUNK_BYTES):
                target.write(chunk)
