"""What every package may use: errors, sanitizing of untrusted input, background tasks, TLS."""
