"""The process: devices, compilation, signals, memory, log. Nothing here knows of networks."""
