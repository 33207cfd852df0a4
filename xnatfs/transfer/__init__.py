"""Downloads into folders and uploads out of them."""
