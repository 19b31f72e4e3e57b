"""The words the three programs share: names, errors, kinds, and what they send each other.

Imports only the standard library, pydantic and msgspec, so that every image can afford it.
"""
