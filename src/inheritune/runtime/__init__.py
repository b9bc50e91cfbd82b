"""What everything stands on: processes, hardware, files, progress, signals."""
