"""Where a request may go: who lives, who can, and who is least loaded."""
