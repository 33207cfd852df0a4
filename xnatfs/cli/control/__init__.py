"""Call a running mount over its control socket."""
