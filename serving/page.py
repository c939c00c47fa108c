"""The page for a browser: page.html, and the policy under which its own script and style run and nothing else does.

server.py serves it at /. The policy names the script and the style by their digests, taken here from the file.
"""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

# As text, because a browser takes the digests after it has made every line's end a line feed.
_page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


def _source(tag: str) -> str:
    """Return the page's one element `tag` as a source of a Content-Security-Policy."""
    [content] = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", _page, re.DOTALL)
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


HTML = _page.encode()
POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_source('script')}",
        f"style-src {_source('style')}",
        "img-src blob: data:",  # the pictures that were chosen, and the page's icon
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text ever becomes HTML
        "trusted-types 'none'",
    ]
)
