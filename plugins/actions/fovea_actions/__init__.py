"""Actions in videos: BMN and BMN with class semantics, their segments of time, and weights."""
