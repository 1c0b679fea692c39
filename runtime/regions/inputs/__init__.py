"""Regions as others have them: arrays, detectors' results, data sets' annotations. None of these libraries is imported.

`runtime.regions.detections` puts the parts here together.
"""
