"""Files: what is fetched, where it is kept, and what takes its place without a network."""
