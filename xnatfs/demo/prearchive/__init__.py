"""Receive sessions, hold them in the prearchive, archive them."""
