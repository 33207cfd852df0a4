"""The control socket of a running mount: what it serves, and the messages on it."""
