"""Which scripts import which, read without running them."""

import ast

from tests.serving import ROOT


def imports(script):
    """Return the names of all packages and scripts that a script imports, wherever in it."""
    nodes = list(ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8"))))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {module.partition(".")[0] for module in modules}


def imported(script):
    """Return the scripts of this repository that one needs, itself among them."""
    found, queue = set(), [script]
    while queue:
        name = f"{queue.pop()}.py"
        if (ROOT / name).exists() and name not in found:
            found.add(name)
            queue += imports(name)
    return found
