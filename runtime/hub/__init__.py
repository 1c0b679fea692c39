"""Bundles by name: what the user wrote is a folder of this machine, or a repository of the Hugging Face hub.

A repository's bundle is kept in the user's cache, by the commit that it is of, and stays that until it is pulled again.
"""

from runtime.hub.finding import exact_name, find_bundle, open_bundle, pull

__all__ = ["exact_name", "find_bundle", "open_bundle", "pull"]
