"""Commands that find sessions, open them in a browser, watch them arrive, and write tables of them."""
