"""The parts that GPU backends share: device, stream, captured graphs, workspace."""
