"""The Kubernetes kinds as Python types: the one source of CRDs, reference pages and configuration files."""
