"""Commands that find sessions, open them in a browser, and watch them arrive."""
