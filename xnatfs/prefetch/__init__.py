"""Prefetch listings of sessions and files of series before a client requests them."""
