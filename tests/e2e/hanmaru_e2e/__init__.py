"""What the end-to-end tests are made of: a cluster, a release on it, clients in pods, and a report."""
