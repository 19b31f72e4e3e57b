"""The gRPC edge: `hanmaru.v1.Inference` beside the standard health and reflection services, on the same flow as REST.

`generated` is written by `make generate` from `proto`.
"""
