"""From parameters and prompts to completions, on the device."""
