"""One file for each model family, with only what differs from the others."""
