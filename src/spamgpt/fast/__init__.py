"""The same results sooner. `blocks` replaces a block, `precision` decides how it multiplies."""
