"""What the idle platform weighs: memory and processor of each process, and the seconds until it answers."""
