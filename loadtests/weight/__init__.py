"""Weight of the idle platform: memory and processor of each process, and the seconds until it answers."""
