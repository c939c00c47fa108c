"""Download files whose digest is known: complete and right, or not at all."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from conversion import ConversionError
from conversion.files import replacing
from runtime.settings import ROOT

TIMEOUT_S = (5, 30)  # to connect, and without a single byte

# The assignment's own photographs, on which the published results of its network are known.
PHOTOS_URL = (
    "https://raw.githubusercontent.com/MTailorEng/mtailor_mlops_assessment/1a3464dd1125008f9e1545b34a0b0f0d06247b43"
)
PHOTOS = {
    "n01440764_tench.jpeg": "sha256:98f7e89b26142f7bdb61f3a627dee89729b0bb07a29e9e7f3be9d394c00c6f01",
    "n01632777_axolotl.jpeg": "sha256:04c86fd7c01c8383c04ff088a65a0e8692e8e4a8fa3169026249607252bc299f",
}


class DownloadError(ConversionError):
    """No address gave the file; the message has the reason for each, and `summary` all of them in a clause."""

    def __init__(self, path: Path, failures: dict[str, Exception]) -> None:
        lines = [f"  {url}: {error}" for url, error in failures.items()]
        place = str(path).removeprefix(f"{ROOT}/")  # a Docker build has another root
        advice = f"Put it into the repository as {place}, or use --weights, or --model efficientnet-lite0, "
        advice += "whose weights ship as a package"
        super().__init__("\n".join([f"{path.name} could not be downloaded:", *lines, advice]))
        hosts: dict[str, list[str]] = {}
        for url, error in failures.items():
            is_down = isinstance(error, requests.ConnectionError | requests.Timeout)
            reason = "did not answer" if is_down else f"failed: {str(error).partition(' for url')[0]}"
            hosts.setdefault(reason, []).append(str(urlsplit(url).hostname).removeprefix("www."))
        self.summary = ", ".join(f"{' and '.join(names)} {reason}" for reason, names in hosts.items())


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
    """Write to `path` what the first of `urls` gives that has one of `digests`. Raises DownloadError if none does."""
    failures: dict[str, Exception] = {}
    for url in urls:
        try:
            with replacing(path) as part:
                fetch(url, part)
                if not is_known(part, digests):
                    raise ConversionError(f"digest {sha256_digest(part)} is not a known one")
            return
        except (requests.RequestException, ConversionError) as error:
            failures[url] = error
    raise DownloadError(path, failures)


def download_photos(folder: Path) -> None:
    """Download the assignment's photographs to `folder`. Raises DownloadError."""
    folder.mkdir(exist_ok=True)
    try:
        for name, digest in PHOTOS.items():
            download([f"{PHOTOS_URL}/{name}"], folder / name, [digest])
    except DownloadError:
        with suppress(OSError):  # it is not empty
            folder.rmdir()
        raise


def fetch(url: str, path: Path) -> None:
    """Write what `url` gives to `path`, with a progress bar. Raises ConversionError or requests.RequestException."""
    with requests.get(url, stream=True, timeout=TIMEOUT_S) as response:
        response.raise_for_status()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise ConversionError("the response is a web page, not the file")
        bar = {"total": response.raw.length_remaining, "desc": path.stem}
        with path.open("wb") as file, tqdm.wrapattr(file, "write", **bar) as target:
            for chunk in response.iter_content(1 << 20):
                target.write(chunk)
