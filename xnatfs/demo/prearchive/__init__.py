"""Receive sessions, keep them in the prearchive, archive them."""
