"""One page to look at: what a dataset holds, and what was made of it."""
