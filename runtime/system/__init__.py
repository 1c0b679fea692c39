"""The machine and its user: processor, folders, and the writing of files."""
