"""Any request to the server: login, retries, circuit breaker, resumable downloads."""
