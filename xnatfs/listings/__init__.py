"""Cache the server's listings with a TTL, persist them, serve them while it is unreachable, and revoke them."""
