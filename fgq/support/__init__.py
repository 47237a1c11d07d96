"""What every layer needs of the process: temporary folders, signals, strict readers of text."""
