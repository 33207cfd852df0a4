"""Take requests on a socket, tell the accounts apart, send replies."""
