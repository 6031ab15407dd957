"""OTGNet: temporal graphs whose classes keep opening; messages between classes pass through an information bottleneck."""
