"""xnatctl: one module a noun."""
