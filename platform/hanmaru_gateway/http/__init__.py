"""The REST edge: routes, bodies, headers, events and errors; nothing else knows about HTTP."""
