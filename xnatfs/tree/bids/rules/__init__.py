"""The rules of BIDS names: which files of a session are shown, under which names. Nothing here does any I/O."""
