"""What the server listed: cached with a TTL, persisted, served stale while it is unreachable, revoked."""
