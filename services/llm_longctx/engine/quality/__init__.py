"""How far methods stray from dense attention: measured, monitored while serving, and held back."""
