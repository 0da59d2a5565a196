"""Tasks: labels, where their texts come from, and how those are balanced and split."""
