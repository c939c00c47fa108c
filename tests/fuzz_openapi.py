"""Hold the real server to serving/openapi.json with Schemathesis, which `make fuzz` installs.

python -m tests.fuzz_openapi [any option of `schemathesis run`]
"""

import subprocess
import sys
from pathlib import Path

from client.endpoint import local_server
from tests.server_process import ROOT

OPTIONS = [
    "--max-time=30",  # seconds
    "--request-timeout=10",  # seconds
    # A schema cannot say that base64 must hold an image: most data that fits it is refused. Nor can it say that the
    # query is ignored if the body has the same option: some data that does not fit is accepted.
    "--exclude-checks=positive_data_acceptance,negative_data_rejection",
]


def main() -> int:
    """Return Schemathesis' exit code; what it needs to repeat a failure stays in .make/."""
    folder = ROOT / ".make"
    folder.mkdir(exist_ok=True)
    with local_server() as endpoint:
        command = [
            Path(sys.executable).with_name("schemathesis"),
            "run",
            f"{endpoint.url}/openapi.json",
            *OPTIONS,
            *sys.argv[1:],
        ]
        return subprocess.run(command, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
