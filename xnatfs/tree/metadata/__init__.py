"""Files in the tree that are made from listings: what the server knows of a session or a project, for programs."""
