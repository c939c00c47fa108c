"""Which files of this repository import which modules, read without running them."""

import ast
from pathlib import Path

from tests.server_process import ROOT


def imports(file: str) -> set[str]:
    """Return the dotted names that a file imports, wherever in it: of `from a import b` both `a` and `a.b`."""
    nodes = list(ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def packages(file: str) -> set[str]:
    """Return the packages, or scripts, that a file imports from."""
    return {module.partition(".")[0] for module in imports(file)}


def needed(script: str) -> set[str]:
    """Return the files of this repository that a script needs, itself among them."""
    found, waiting = set(), [script]
    while waiting:
        file = waiting.pop()
        if file not in found and (ROOT / file).is_file():
            found.add(file)
            waiting += [f"{module.replace('.', '/')}.py" for module in imports(file)]
    return found | {str(Path(file).parent / "__init__.py") for file in found if "/" in file}
