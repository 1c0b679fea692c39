"""The service over HTTP: a bundle for programs in any language, and a page for people (docs/serve.md)."""
