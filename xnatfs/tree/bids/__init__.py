"""The view bids/: a project's NIfTI files under the names of the Brain Imaging Data Structure."""
