"""Spec in, manifests out: every object the operator makes, pure. No client, no clock, no environment."""
