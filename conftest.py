"""Every test, notebooks included, runs on Pocket GPT, without the internet, in a fresh workspace.

The environment is set here, before anything of spamgpt is imported, so that the kernels
that nbval starts inherit it.
"""

import os
import tempfile

os.environ["SPAMGPT_BASE"] = "pocket"
os.environ["SPAMGPT_OFFLINE"] = "1"
_workspace = tempfile.TemporaryDirectory(prefix="spamgpt-test-")
os.environ["SPAMGPT_WORKSPACE"] = _workspace.name
