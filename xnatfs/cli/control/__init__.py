"""The commands that ask a running mount, over its control socket."""
