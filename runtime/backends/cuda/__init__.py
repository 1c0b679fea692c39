"""What GPU backends share: device, stream, captured graphs, workspace."""
