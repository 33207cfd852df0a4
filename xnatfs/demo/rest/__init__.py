"""Answer requests for lists, documents and services as XNAT's REST API does."""
