"""Tools: functions that a request offers, their description for the model, and how its calls are read."""
