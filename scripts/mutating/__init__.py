"""Mutation testing: each of mutmut's changes runs against the tests that execute the changed line."""
