"""spamgpt: the shared package of the notebook series that turns GPT-2 into a spam classifier."""

import sys

__version__ = "0.2.0"

# The lecture's seed: whatever is drawn at random starts here, unless a caller says otherwise.
SEED = 123

# Before anything that an older Python cannot even read.
if sys.version_info < (3, 10):  # noqa: UP036
    raise ImportError(
        "spamgpt needs Python 3.10 or newer, this is {}.{}: install a newer one, then "
        "`make PYTHON=python3.12 setup`".format(*sys.version_info)
    )

from spamgpt import settings  # noqa: E402, F401  paths and libraries' settings, before torch
