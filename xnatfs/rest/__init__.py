"""XNAT's REST API: one method a resource, its rows as dataclasses, its streamed JSON."""
