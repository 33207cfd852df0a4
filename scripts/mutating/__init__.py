"""Mutation testing: mutmut's changes, tried one by one by tests that execute the changed line."""
