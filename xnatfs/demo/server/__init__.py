"""Receive requests on a socket, authenticate them and send replies."""
