"""The ranges that the project promises, and warnings that must not pass unseen."""

import re
import warnings

import pytest

from spamgpt.files.workspace import PROJECT

WORKFLOW = (PROJECT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
PYPROJECT = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
@pytest.mark.parametrize("module", ["spamgpt.models.gpt2", "spamgpt"])
def test_our_own_code_may_not_use_what_is_on_its_way_out(kind, module):
    with pytest.raises(kind):
        warnings.warn_explicit("old", kind, "file.py", 1, module=module)


def test_somebody_elses_deprecations_are_no_failure(recwarn):
    warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module="pandas.core")
    assert len(recwarn) == 1


def test_the_workflow_tests_the_oldest_python_that_is_promised():
    (oldest,) = re.findall(r'requires-python = ">=([\d.]+)"', PYPROJECT)
    assert re.search(rf'python: "{re.escape(oldest)}", resolution: lowest-direct', WORKFLOW)
    assert WORKFLOW.count(f'python: ["{oldest}"') == 2  # Unix and Windows


def test_every_pin_lies_in_its_range_and_every_range_has_a_pin():
    from packaging.requirements import Requirement

    requirements = (PROJECT / "requirements.txt").read_text(encoding="utf-8")
    pins = [
        Requirement(line)
        for line in requirements.splitlines()
        if line and not line.startswith(("#", "--"))
    ]
    assert all(re.fullmatch(r"==[\d.]+", str(pin.specifier)) for pin in pins)
    listed = re.search(r"^dependencies = \[(.*?)^\]", PYPROJECT, re.S | re.M)[1]
    ranges = {r.name: r for r in map(Requirement, re.findall(r'"(.+)"', listed))}
    for pin in pins:
        if pin.name in ranges:
            assert ranges[pin.name].specifier.contains(str(pin.specifier)[2:]), pin
    assert set(ranges) <= {pin.name for pin in pins}
