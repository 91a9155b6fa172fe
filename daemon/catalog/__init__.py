"""What providers are: their presets and their published metadata."""
