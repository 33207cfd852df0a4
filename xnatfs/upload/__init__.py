"""Sending: a session's images through the import service, files into a resource.

images.py    what DICOM a folder, a zip or a tar holds
bodies.py    requests made of files while they are sent, without a copy
journal.py   what was sent, for a run that takes up where another ended
session.py   a session, in batches, to where the server puts it
resource.py  files of a resource
"""
