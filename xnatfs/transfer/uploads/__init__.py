"""Upload images as a session, and files to a resource."""
