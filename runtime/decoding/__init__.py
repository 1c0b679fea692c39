"""Stage 5: vectors in text space -> token ids -> text."""
