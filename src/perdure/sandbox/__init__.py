"""Where code runs that a model wrote. Rule: that code is hostile, and the walls are the feature."""
