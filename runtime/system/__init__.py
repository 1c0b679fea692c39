"""What the machine and its user have: folders, files, processor."""
