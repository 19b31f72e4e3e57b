"""The request plane: authenticates, admits, routes and streams; Ray Serve carries it."""
