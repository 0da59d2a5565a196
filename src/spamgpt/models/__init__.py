"""Base models: what they compute, and the published files that hold their weights."""
