"""Fakes, builders and real parts that tests share; importable through pytest's `pythonpath`."""
