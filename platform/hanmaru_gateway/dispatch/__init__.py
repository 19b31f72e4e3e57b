"""One exchange with one engine: ask, read, stop."""
