"""Files that are complete under their name, or not there: those that the converter writes, and those it downloads."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from conversion import ConversionError


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
    """Write to `path` what the first of `urls` gives that has a `known` digest. Raises ConversionError if none does."""
    failures = []
    for url in urls:
        try:
            with requests.get(url, stream=True, timeout=(5, 30)) as response:  # seconds to connect, and without a byte
                response.raise_for_status()
                content = b"".join(tqdm(response.iter_content(1_000_000), path.name, unit="MB"))
            if set(known).isdisjoint(digests(content)):
                raise ConversionError(f"{response.headers.get('Content-Type')}, unknown digest {digests(content)[0]}")
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as part:
                part.write_bytes(content)
            return
        except (requests.RequestException, ConversionError) as error:
            failures.append(f"  {url}: {error}")
    advice = "or use --weights, or --model efficientnet-lite0, whose weights ship as a package"
    hosts = " or ".join(urlsplit(url).netloc for url in urls)
    summary = f"{path.name} could not be downloaded from {hosts}"  # the first line, which callers may print alone
    raise ConversionError("\n".join([summary, *failures, f"Put it next to convert_to_onnx.py, {advice}"]))
