"""Merge a pull request whose tests have passed, exactly as it was tested, unless something holds it back.

    GH_REPO=owner/name python .ci/merge.py NUMBER HEAD_COMMIT

Runs in the merge commit that was tested: GitHub's own of the pull request's head and main. Main has to be where it was
then, because what is merged is deployed at once, and nobody has tested it with what has come to main since.
"""

import json
import subprocess
import sys

WORKFLOW = "pre-deployment.yml"
FIELDS = "files,headRefOid,isCrossRepository,isDraft,labels,state"


def output(*command: str) -> str:
    """Return what a command prints; end with its exit code where it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout.strip()


def held_back(pull: dict) -> str | None:
    """Return why a pull request is left to a person, or None."""
    if pull["state"] != "OPEN":
        return "it is no longer open"
    if pull["isCrossRepository"]:
        return "it comes from a fork"
    if pull["isDraft"]:
        return "it is a draft"
    if any(label["name"] == "no-auto-merge" for label in pull["labels"]):
        return "it has the label no-auto-merge"
    if any(file["path"].startswith(".github/workflows/") for file in pull["files"]):
        return "it changes a workflow, and GitHub lets no workflow merge that"
    return None


def main(number: str, head: str) -> None:
    """Merge, keep the branch, and have main tested: GitHub starts no workflow for what a workflow pushes."""
    pull = json.loads(output("gh", "pr", "view", number, "--json", FIELDS))
    if why := held_back(pull):
        print(f"::notice title=Not merged::{why}")
        return
    tested, now = (
        output("git", "rev-parse", "HEAD^1"),
        output("gh", "api", "repos/{owner}/{repo}/commits/main", "--jq", ".sha"),
    )
    if pull["headRefOid"] != head or now != tested:
        sys.exit("::error title=Not merged::the branch or main has moved since the tests: update the branch")
    print(output("gh", "pr", "merge", number, "--merge", "--match-head-commit", head))
    print(output("gh", "workflow", "run", WORKFLOW, "--ref", "main"))


if __name__ == "__main__":
    main(*sys.argv[1:])
