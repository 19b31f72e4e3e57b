"""`serving.hanmaru.dev/v1alpha1`, one kind a module."""
