"""Download a model's weights, whose digest is known: complete and right, or not at all."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import requests
from tqdm import tqdm

from conversion import ConversionError
from conversion.files import replacing

TIMEOUT_S = (5, 30)  # to connect, and without a single byte


def sha256_digest(path: Path) -> str:
    """Return `sha256:` and what sha256sum prints for the file."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def git_digest(path: Path) -> str:
    """Return `git:` and what `git hash-object` prints for the file."""
    content = path.read_bytes()
    blob = b"blob %d\0" % len(content) + content
    return f"git:{hashlib.sha1(blob, usedforsecurity=False).hexdigest()}"


def is_known(path: Path, digests: Sequence[str]) -> bool:
    """Return whether the file has one of `digests`, of either kind."""
    return sha256_digest(path) in digests or git_digest(path) in digests


def download(urls: Sequence[str], path: Path, digests: Sequence[str]) -> None:
    """Write to `path` what the first of `urls` gives that has one of `digests`, of either kind.

    The file has its name only once it is complete and right. Raises ConversionError when every address has failed.
    """
    reasons = []
    for url in urls:
        try:
            with replacing(path) as part:
                fetch(url, part)
                if not is_known(part, digests):
                    raise ConversionError(f"digest {sha256_digest(part)} is not a known one")
            return
        except (requests.RequestException, ConversionError) as error:
            reasons.append(f"  {url}: {error}\n")
    raise ConversionError(
        f"{path.name} could not be downloaded:\n{''.join(reasons)}"
        f"Put the file there by hand, as {path}, or name one with --weights. Or take "
        "--model efficientnet-lite0, whose weights come with a package; --model auto takes it by itself."
    )


def fetch(url: str, path: Path) -> None:
    """Write what `url` gives to `path`, with a progress bar. Raises ConversionError or requests.RequestException."""
    with requests.get(url, stream=True, timeout=TIMEOUT_S) as response:
        response.raise_for_status()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise ConversionError("answered with a web page instead of the file")
        bar = {"total": response.raw.length_remaining, "desc": path.stem}
        with path.open("wb") as file, tqdm.wrapattr(file, "write", **bar) as target:
            for chunk in response.iter_content(1 << 20):
                target.write(chunk)
