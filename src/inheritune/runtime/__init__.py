"""What everything builds on: processes, hardware, files, progress, signals."""
