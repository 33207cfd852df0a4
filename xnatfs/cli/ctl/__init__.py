"""Commands of xnatctl, one module a noun."""
