"""Access XNAT's REST API: one method per resource, rows as dataclasses, streamed JSON."""
