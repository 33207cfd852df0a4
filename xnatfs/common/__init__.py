"""Code that every package may import: errors, sanitizing of untrusted input, background tasks, TLS."""
