"""Keep an issue open while the deployed endpoint fails its tests: open it, add to it, close it.

    GH_REPO=owner/name python .ci/tell.py success|failure URL_OF_THE_RUN

The issue is the one with the label of LABEL; a person may close it, too.
"""

import json
import subprocess
import sys

LABEL = "endpoint-fails"


def output(*command: str) -> str:
    """Return what a command prints; end with its exit code where it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout.strip()


def main(result: str, run: str) -> None:
    """Do what the result of the tests asks for; a run that was cancelled says nothing of the endpoint."""
    found = json.loads(output("gh", "issue", "list", "--label", LABEL, "--state", "open", "--json", "number"))
    number = str(found[0]["number"]) if found else None
    if result == "failure":
        body = f"The endpoint has failed its tests. The summary of the run says which: {run}"
        if number:
            output("gh", "issue", "comment", number, "--body", body)
        else:
            output("gh", "label", "create", LABEL, "--force", "--description", "The deployed endpoint fails its tests")
            output("gh", "issue", "create", "--title", "The endpoint fails its tests", "--label", LABEL, "--body", body)
    elif result == "success" and number:
        output("gh", "issue", "close", number, "--comment", f"The endpoint has passed its tests: {run}")


if __name__ == "__main__":
    main(*sys.argv[1:])
