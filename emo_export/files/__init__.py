"""What is on disk: headers, manifest, packages and their sizes."""
