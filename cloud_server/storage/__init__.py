"""What the cloud keeps on disk."""
