"""Scoring captions against ground truth: files in, regions and references, captions, metrics, one table out."""
