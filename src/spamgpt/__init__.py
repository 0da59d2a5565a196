"""spamgpt: the shared package of the notebook series that turns GPT-2 into a spam classifier."""

__version__ = "0.1.0"
