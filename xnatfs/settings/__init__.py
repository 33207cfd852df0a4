"""Settings of this user: configuration, credentials, profiles, stored sessions."""
