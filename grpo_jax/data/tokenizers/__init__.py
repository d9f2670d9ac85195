"""Text to tokens and back: built here, of Hugging Face, chat templates."""
