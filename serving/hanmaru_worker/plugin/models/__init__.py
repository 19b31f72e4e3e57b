"""The models an engine of ours can be asked to run: named by `SGLANG_EXTERNAL_MODEL_PACKAGE` to start faster.

With that variable SGLang imports the modules of this package instead of its own 190 models, and falls back to
its own for any architecture not found here. Nothing in it changes what a model computes.
"""
