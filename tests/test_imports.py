"""Imports go one way: no cycle, and the folders at the bottom know nothing of those above."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from spamgpt.files.workspace import PROJECT

SOURCE = PROJECT / "src"


def module_name(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in (SOURCE / "spamgpt").rglob("*.py")}


def imports(path) -> set[str]:
    """The modules of this package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found & MODULES.keys()


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def find_cycle(graph) -> list[str]:
    """The modules of a cycle, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_by_way_of_others():
    assert len(GRAPH) > 20 and sum(map(len, GRAPH.values())) > 50
    assert find_cycle(GRAPH) == []


def test_a_cycle_would_be_found():
    assert find_cycle(GRAPH | {"spamgpt.settings": {"spamgpt.training"}})


# What each part of the package may import of the others; what is not listed may import anything.
ALLOWED = {
    "spamgpt.settings": (),
    "spamgpt.recipes": (),
    "spamgpt.statistics": (),
    "spamgpt.hardware": (),
    "spamgpt.files": ("spamgpt.settings",),
    "spamgpt.models": ("spamgpt.settings", "spamgpt.files", "spamgpt.recipes", "spamgpt.hardware"),
    "spamgpt.tasks": ("spamgpt.settings", "spamgpt.files"),
    "spamgpt.fast": ("spamgpt.settings", "spamgpt.files", "spamgpt.hardware", "spamgpt.models"),
}


@pytest.mark.parametrize("part", ALLOWED)
def test_the_lower_parts_import_nothing_from_above(part):
    inside = [name for name in GRAPH if f"{name}.".startswith(f"{part}.")]
    assert inside
    allowed = (part, *ALLOWED[part])
    for name in inside:
        above = {
            other
            for other in GRAPH[name] - {"spamgpt"}  # SEED and the version
            if not f"{other}.".startswith(tuple(f"{a}." for a in allowed))
        }
        assert above == set(), f"{name} imports {', '.join(sorted(above))}"


def test_what_classify_needs_imports_nothing_heavy_besides_torch():
    """torch's compiler alone takes a second and 75 MB; tables and plots are for others."""
    script = (
        "import sys; import spamgpt.inference, spamgpt.saving, spamgpt.files.messages\n"
        "heavy = {'torch._dynamo', 'pandas', 'sklearn', 'scipy', 'matplotlib', 'requests'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    call = [sys.executable, "-c", script]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
