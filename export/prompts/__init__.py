"""The words of prompts, made ready for bundles: token ids, and what decides which are read."""
