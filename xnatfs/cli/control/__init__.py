"""The commands that call a running mount, over its control socket."""
