"""Key concepts of captions, made ready for look-up: scene graphs, similar entities, tables and pieces of prompts."""
