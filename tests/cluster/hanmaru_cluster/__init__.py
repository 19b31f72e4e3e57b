"""A real Kubernetes control plane on one machine, for tests and for people: see `tests/cluster/README.md`."""
