"""Who calls, what they may ask for, and how much: everything decided before a request is routed."""
