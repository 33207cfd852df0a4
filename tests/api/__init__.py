"""Tests of `xnatfs.api`."""
